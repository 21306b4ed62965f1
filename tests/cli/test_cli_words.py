"""What a run's end says, without a run."""

import io

import pytest

from mlops_nb.commands.execute import Lines, tell_end
from mlops_nb.commands.look import state_of
from mlops_nb.commands.terminal import Terminal
from mlops_nb.core.settings import load_settings


def test_a_run_without_steps_ends_without_a_stray_comma(project):
    page = io.StringIO()
    error = {"type": "StorageError", "message": "The disk is full.", "hint": "Make room."}
    run = {"run": "x", "pipeline": "demo", "status": "failed", "seconds": 1.0, "steps": [], "error": error}
    tell_end(Terminal(page), run, load_settings(project))
    [told] = [line for line in page.getvalue().splitlines() if line.startswith("✗ failed")]
    assert "," not in told


@pytest.mark.parametrize(("kind", "word"), [("Refused", "refused"), ("UsageError", "failed"), ("ValueError", "failed")])
def test_a_refused_step_is_told_as_refused(kind, word):
    page = io.StringIO()
    step = {"step": "ingest", "state": "failed", "seconds": 1.0, "reasons": [], "error": {"type": kind, "message": "x"}}
    assert state_of(step) == word
    Lines(Terminal(page)).step_finished(step)
    assert f" {word} " in page.getvalue()
