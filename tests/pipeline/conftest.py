"""Runs of this room's tests do not reach the rooms above it."""

import pytest
from faults import bench

from mlops_nb.core.registry import Hooks
from mlops_nb.pipeline import run, underway


@pytest.fixture(autouse=True)
def listeners(monkeypatch):
    """A fresh set of hooks, with nobody listening."""
    fresh = Hooks()
    for module in (run, underway):
        monkeypatch.setattr(module, "hooks", fresh)
    return fresh


@pytest.fixture(scope="module")
def fault_bench():
    """Where random pipelines are disturbed, one after the other."""
    with bench() as one:
        yield one
