"""Copies of modules with one line changed."""

from __future__ import annotations

import inspect
import sys
import types

import pytest


@pytest.fixture
def mutated(monkeypatch):
    """Return a fresh copy of a module in which some text is replaced."""

    def mutated(module, old, new):
        source = inspect.getsource(module)
        assert source.count(old) == 1, f"{module.__name__} must hold this once: {old}"
        copy = types.ModuleType(f"{module.__name__}_mutated")
        monkeypatch.setitem(sys.modules, copy.__name__, copy)  # dataclasses look there
        exec(compile(source.replace(old, new), copy.__name__, "exec"), copy.__dict__)
        return copy

    return mutated
