"""The libraries' own bars and notices off, where a command draws one bar of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import datasets
from transformers.utils import logging


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """No bars and no notices from transformers, TRL and datasets meanwhile; errors are still said."""
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
