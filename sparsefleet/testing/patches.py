"""Functions that everybody calls, and whether somebody replaced one."""

from __future__ import annotations

import builtins
import math
import os
import random
import sys
import time
import types
from typing import Any

import torch
from torch import nn

import sparsefleet.connections
import sparsefleet.rng
import sparsefleet.sparsity.select

_ABSENT = object()
_FOLLOW = {"torch.Storage"}  # torch.set_default_dtype sets it too


def _places() -> dict[str, Any]:
    """Modules and classes by the name under which they are told."""
    modules = (builtins, math, os, random, time, torch, nn, nn.functional, nn.init, torch.linalg, torch.autograd, torch.sparse, torch.optim)
    own = (sparsefleet.connections, sparsefleet.rng, sparsefleet.sparsity.select)
    classes = (torch.Tensor, nn.Module, nn.Parameter, nn.Linear, nn.Conv2d, nn.Sequential, torch.optim.Optimizer, torch.optim.SGD)
    mine = (sparsefleet.connections.Connections, sparsefleet.rng.Rng)
    found: dict[str, Any] = {module.__name__: module for module in (*modules, *own)}
    found |= {f"{cls.__module__}.{cls.__qualname__}": cls for cls in (*classes, *mine)}
    if "numpy" in sys.modules:
        found["numpy"] = sys.modules["numpy"]
    return found


def _by_torch(value: Any) -> bool:
    """True of what torch itself puts there when its compiler is first imported."""
    return str(getattr(value, "__globals__", {}).get("__name__", "")).partition(".")[0] == "torch"


class Patches:
    """What stands under every public name of these modules and classes at this moment."""

    def __init__(self) -> None:
        self._places = _places()
        self._held = {name: dict(vars(place)) for name, place in self._places.items()}

    def _differing(self) -> list[tuple[str, str]]:
        """(place, name) of what is another object now; in modules private names and new ones do not count: they load parts lazily."""
        found = []
        for place, before in self._held.items():
            now = vars(self._places[place])
            is_module = isinstance(self._places[place], types.ModuleType)
            names = before.keys() if is_module else before.keys() | now.keys()
            for name in names:
                if now.get(name, _ABSENT) is before.get(name, _ABSENT) or (is_module and name.startswith("_")):
                    continue
                if not _by_torch(now.get(name)) and f"{place}.{name}" not in _FOLLOW:
                    found.append((place, name))
        return found

    def changed(self) -> list[str]:
        """Full names, sorted."""
        return sorted(f"{place}.{name}" for place, name in self._differing())

    def restore(self) -> None:
        """Puts them back."""
        for place, name in self._differing():
            before = self._held[place].get(name, _ABSENT)
            if before is _ABSENT:
                delattr(self._places[place], name)
            else:
                setattr(self._places[place], name, before)
