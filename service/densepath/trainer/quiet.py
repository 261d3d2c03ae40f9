"""Switching off the progress bars and notices of libraries, where a command shows its own bar."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import datasets
from transformers.utils import logging


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Inside the block, transformers, TRL and datasets show no bars and no notices, only errors."""
    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    datasets_bars = datasets.are_progress_bars_disabled()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
        if not datasets_bars:
            datasets.enable_progress_bars()
