"""Run library notebooks as tests: each exported cell is replaced by the module it was exported to.

So coverage is the module's, and an export that lacks an import fails here although the notebook itself would run.
Step notebooks (nbs/pipelines) run as pipelines, in tests/.
"""

import importlib
import json
import os
import re
import traceback
from pathlib import Path

import pytest

HERE = Path(__file__).parent
DIRECTIVE = re.compile(r"^\s*#\s*\|\s*([\w-]+)\s*:?\s*(.*?)\s*$")
EXPORTS = {"export", "exports", "exporti"}


def directives(source: str) -> dict[str, str]:
    """The `#|` lines that open a cell."""
    found = {}
    for line in source.splitlines():
        if match := DIRECTIVE.match(line):
            found[match[1]] = match[2]
        elif line.strip():
            break
    return found


class CellError(Exception):
    """A cell raised; the text says which, and how."""


class NotebookItem(pytest.Item):
    """One notebook, run from top to bottom."""

    def runtest(self):
        cells = [
            cell for cell in json.loads(self.path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"
        ]
        sources = [("".join(cell["source"]), cell) for cell in cells]
        module = next((d["default_exp"] for source, _ in sources if "default_exp" in (d := directives(source))), None)
        names = {"__name__": "__main__", "display": lambda *shown, **_: None}
        if module:
            public = vars(importlib.import_module(f"mlops_nb.{module}"))
            names.update({name: value for name, value in public.items() if not name.startswith("__")})
        before, environment = Path.cwd(), dict(os.environ)
        os.environ["MLOPS_NB_PIPELINE_SERVER"] = "off"  # notebooks leave no process behind
        os.chdir(self.path.parent)
        try:
            for source, cell in sources:
                self.run_cell(source, cell, names)
        finally:
            os.chdir(before)
            os.environ.clear()
            os.environ.update(environment)

    def run_cell(self, source, cell, names):
        """Run one cell, unless it is exported or marked as not to be run."""
        found = directives(source)
        if (
            EXPORTS & found.keys()
            or found.get("eval") == "false"
            or "skip-execution" in cell["metadata"].get("tags", [])
        ):
            return
        name = f"{self.path.relative_to(HERE)}#{cell['id']}"
        try:
            exec(compile(source, name, "exec"), names)
        except Exception as error:
            rest = error.__traceback__.tb_next if error.__traceback__ else None
            text = "".join(traceback.format_exception(type(error), error, rest))
            raise CellError(f"{name}\n\n{source}\n\n{text}") from None

    def repr_failure(self, excinfo):
        return str(excinfo.value) if isinstance(excinfo.value, CellError) else super().repr_failure(excinfo)

    def reportinfo(self):
        return self.path, 0, f"notebook {self.path.relative_to(HERE)}"


class NotebookFile(pytest.File):
    def collect(self):
        yield NotebookItem.from_parent(self, name=self.path.stem)


def pytest_collect_file(file_path, parent):
    """One item for each library notebook."""
    hidden = any(part.startswith((".", "_")) for part in file_path.relative_to(HERE).parts)
    if file_path.suffix == ".ipynb" and not hidden and not file_path.is_relative_to(HERE / "pipelines"):
        return NotebookFile.from_parent(parent, path=file_path)
    return None
