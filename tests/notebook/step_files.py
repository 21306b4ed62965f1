"""Small projects of step notebooks for the tests of the notebook room."""

import json
from pathlib import Path

IMPORTS = "from mlops_nb import flow, log"


def cell(source, **metadata):
    """A cell as a file stores it; text beginning with '# ' is Markdown."""
    if source.startswith(("# ", "## ")):
        return {"cell_type": "markdown", "id": "", "metadata": metadata, "source": source}
    tags = {"tags": ["parameters"]} if source.startswith("#| parameters") else {}
    return {
        "cell_type": "code",
        "execution_count": None,
        "id": "",
        "metadata": {**tags, **metadata},
        "outputs": [],
        "source": source,
    }


def write_notebook(path, *cells, **metadata):
    """Write a notebook of cells, each a text or a dict."""
    made = [cell(item) if isinstance(item, str) else item for item in cells]
    for number, item in enumerate(made):
        item["id"] = f"cell-{number}"
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = {"cells": made, "metadata": {**kernel, **metadata}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(notebook), encoding="utf-8")
    return path


def write_project(root):
    """A project with one pipeline of two steps; the folder of the pipeline."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "settings.ini").write_text("[package]\nname = demo\n[workspace]\n")
    folder = root / "nbs/pipelines/demo"
    write_notebook(
        folder / "10_make.ipynb",
        IMPORTS,
        "#| parameters\nn: int = 4  # how many rows",
        "# Make",
        "%matplotlib inline\nrows = list(range(n))\nflow.rows = rows",
        "flow.count = {'n': n}",
    )
    write_notebook(
        folder / "20_total.ipynb",
        IMPORTS,
        "#| parameters\nscale: float = 1.0  # factor",
        "# Total",
        "rows = flow.make.rows",
        "total = sum(rows) * scale\ntotal",
        "flow.metrics = {'total': total}\nlog(total=total)",
    )
    return folder


def text_of(notebook):
    """All that a notebook's cells printed."""
    outputs = [output for item in notebook["cells"] for output in item.get("outputs", [])]
    return "".join("".join(output.get("text", output.get("traceback", []))) for output in outputs)
