"""Packages whose clients are light and whose `__init__` is not."""

from __future__ import annotations

import importlib.util
import sys
import types

import pytest


def bare_package(name: str) -> None:
    """Put an installed package into `sys.modules` without running its `__init__`; its modules are its own.

    SGLang's loads the kernels of its server, that of `openrlhf.utils` DeepSpeed, and `skyrl.backends`
    declares models that Python 3.11 and pydantic refuse. A package that is imported already stays as it is.
    Skips the calling module where it is not installed.
    """
    if name in sys.modules:
        return
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip(f"{name} is not installed: make test-integrations", allow_module_level=True)
    package = types.ModuleType(name)
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules[name] = package
