"""Code that is reached by names that cannot be read counts with its whole module, and lint says where."""

from types import SimpleNamespace

import pytest
from pipeline_support import Project, settle

from mlops_nb.commands.project import lint
from mlops_nb.pipeline.lint import dynamic_code


@pytest.fixture
def project(tmp_path):
    project = Project(tmp_path / "project")
    project.step("10_score", "from tools import run", "flow.x = run('1')")
    project.step("20_other", "from tools import aside", "flow.x = aside()")
    return project


def tools(project, body, above="", after=""):
    """A module of three definitions, the first of which is to be looked at; its body begins in line 3."""
    text = f"{above}\ndef run(n):\n    {body}\ndef aside():\n    return 1\ndef hidden():\n    return 2\n{after}"
    return project.file("tools.py", text)


DYNAMIC = {
    "exec": "exec(n)",
    "eval": "return eval(n)",
    "a method of builtins": "import builtins; return builtins.exec(n)",
    "globals": "return globals()[n]()",
    "the modules table": "import sys; return sys.modules[__name__]",
    "a built-in import": "return __import__(n)",
    "a computed import": "import importlib; return importlib.import_module(n)",
    "a relative computed import": "from importlib import import_module; return import_module('.' + n, __package__)",
    "an import that is handed on": "from importlib import import_module; return list(map(import_module, [n]))",
    "an import by another name": "from importlib import import_module as load; return load(n)",
    "a script": "import runpy; return runpy.run_path(n)",
    "a computed script": "from runpy import run_module; return run_module(n)",
    "a file as a module": "import importlib.util as u; return u.spec_from_file_location('x', n)",
    "inside a lambda": "return (lambda m: eval(m))(n)",
    "inside a comprehension": "return [eval(m) for m in n]",
}


@pytest.mark.parametrize("body", DYNAMIC.values(), ids=DYNAMIC)
def test_dynamic_code_counts_its_module_and_is_told(project, body):
    tools(project, body)
    settle(project)
    (found,) = {(one.notebook, one.cell, one.line, one.level) for one in dynamic_code(project.settings, "churn")}
    assert found == ("tools.py", None, 3, "warning")
    tools(project, body, after="def added():\n    return 3\n")
    assert project.plan().runs == ["score"]
    assert any("tools.py::added is reached now" in reason for reason in project.reasons("score"))


STATIC = {
    "a literal import": "import importlib; return importlib.import_module('json')",
    "a literal script": "import runpy; return runpy.run_module('json')",
    "another eval": "return n.eval('a + b')",
    "another exec": "return n.exec(1)",
    "a compiled pattern": "import re; return re.compile(n)",
    "an attribute by a literal": "import os; return getattr(os, 'name')",
}


@pytest.mark.parametrize("body", STATIC.values(), ids=STATIC)
def test_what_can_be_read_is_not_dynamic(project, body):
    tools(project, body)
    settle(project)
    assert dynamic_code(project.settings, "churn") == []
    tools(project, body, after="def added():\n    return 3\n")
    assert project.plan().runs == []


def test_an_import_by_another_name_at_the_top_makes_all_of_the_module_dynamic(project):
    tools(project, "return load(n)", above="from importlib import import_module as load")
    settle(project)
    (found,) = dynamic_code(project.settings, "churn")
    assert found.line == 1 and "`import_module as load`" in found.message
    assert found.message.endswith("all of tools counts for score, other.")


def test_only_what_is_reached_is_told(project):
    tools(project, "return 1", after="def unused(n):\n    exec(n)\n")
    assert dynamic_code(project.settings, "churn") == []


def test_a_cell_that_executes_text(project):
    tools(project, "return 1")
    project.step("30_wild", "# Prose", "import tools", "a = 1\n\nexec('flow.y = tools.hidden()')\nflow.x = a")
    (found,) = dynamic_code(project.settings, "churn")
    assert (found.notebook, found.cell, found.line) == ("nbs/pipelines/churn/30_wild.ipynb", 4, 3)
    assert "step 'wild'" in found.message and str(found).startswith(
        "warning: nbs/pipelines/churn/30_wild.ipynb, cell 4"
    )


def test_the_command_tells_it_and_does_not_fail(project, monkeypatch):
    tools(project, "exec(n)")
    monkeypatch.chdir(project.folder)
    answer = lint(SimpleNamespace(pipeline=None, fix=False), None)
    (found,) = [one for one in answer.document["findings"] if one["rule"] == "dynamic"]
    assert (found["notebook"], found["line"], answer.code) == ("tools.py", 3, 0)


def test_lint_of_a_broken_pipeline_still_answers(project, monkeypatch):
    tools(project, "exec(n)")
    project.step("30_broken", "flow.x = flow.nobody.y", "def f(:")
    assert [one.notebook for one in dynamic_code(project.settings, "churn")] == ["tools.py"]
