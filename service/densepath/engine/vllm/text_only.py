"""Loads a text model of vLLM whose file also has an image model.

The file of Qwen3.5 imports image processors, and they import torchvision. The CPU engine is installed without
torchvision, and a pair never reads images.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

from vllm.model_executor.models.registry import ModelRegistry

IMPORTED = (
    "torchvision",
    "torchvision.transforms",
    "torchvision.transforms.v2",
    "torchvision.transforms.v2.functional",
)


def load_class(architecture: str) -> None:
    """Load the class of this name where torchvision is missing, and register it as loaded.

    Otherwise vLLM would load it in another process first, and fail there.
    """
    known = ModelRegistry.models.get(architecture)
    module_name = getattr(known, "module_name", None)  # None if the class is loaded
    if module_name is None or find_spec("torchvision") is not None:
        return
    with _empty_torchvision():
        module = import_module(module_name)
    ModelRegistry.register_model(architecture, getattr(module, known.class_name))


@contextmanager
def _empty_torchvision() -> Iterator[None]:
    """Inside this block, torchvision can be imported, and has nothing in it."""
    for name in IMPORTED:
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None, is_package=True)
        module.__path__ = []
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    try:
        yield
    finally:
        for name in IMPORTED:
            del sys.modules[name]
