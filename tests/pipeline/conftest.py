"""Runs of this room's tests do not reach the rooms above it."""

import pytest

from mlops_nb.core.registry import Hooks
from mlops_nb.pipeline import run


@pytest.fixture(autouse=True)
def listeners(monkeypatch):
    """A fresh set of hooks, with nobody listening."""
    fresh = Hooks()
    monkeypatch.setattr(run, "hooks", fresh)
    return fresh
