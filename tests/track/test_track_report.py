"""Reports show what stands in a notebook, with nothing loaded from outside."""

import base64
import json
import re

import pytest

from mlops_nb.track.report import formula_image, report_html

STEPS = ["ingest", "validate", "split", "train", "evaluate", "package"]


@pytest.mark.parametrize("name", STEPS)
def test_no_formula_of_a_step_is_shown_as_tex(repository, name):
    [path] = (repository / "nbs" / "pipelines" / "tabular").glob(f"*_{name}.ipynb")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    prose = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    formulas = re.findall(r"\$\$.+?\$\$|\$.+?\$", prose, re.S)
    page = re.sub(r"<pre>.*?</pre>", "", report_html(path), flags=re.S)
    assert page.count("data:image/svg+xml") == len(formulas) and "$" not in page
    assert not re.search(r"""(?:src|href)=["']?http""", page)


def test_a_formula_is_drawn_the_same_each_time():
    tex = r"\tfrac{1}{2} \lVert x \rVert^2 < \big(y\big)"
    first = formula_image(tex)
    formula_image.cache_clear()
    assert formula_image(tex) == first and "&lt;" in first
    picture = base64.b64decode(first.partition("base64,")[2].rstrip('">')).decode()
    assert "<svg" in picture and "Date" not in picture and "<script" not in picture


def test_a_formula_that_cannot_be_drawn_is_shown_as_it_is_written():
    assert formula_image(r"\begin{cases} a < b \end{cases}") == r"<code>\begin{cases} a &lt; b \end{cases}</code>"


def test_pictures_that_are_attached_to_a_cell_are_shown():
    cell = {
        "cell_type": "markdown",
        "id": "a",
        "metadata": {},
        "source": "![plan](attachment:plan.png) of $x$ in `$y$`",
    }
    cell["attachments"] = {"plan.png": {"image/png": "aGVsbG8="}}
    page = report_html({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    assert "data:image/png;base64,aGVsbG8=" in page and 'alt="x"' in page and "<code>$y$</code>" in page
