"""Modules from their Python source, even where they are compiled: to set what the compiler hides."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType


def load(name: str) -> ModuleType:
    """The module of this name, made anew from its ``.py`` file."""
    directory = Path(str(importlib.import_module(name).__file__)).parent
    path = directory / (name.rpartition(".")[2] + ".py")
    package, _, last = name.rpartition(".")
    spec = importlib.util.spec_from_file_location(f"{package}.uncompiled_{last}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
