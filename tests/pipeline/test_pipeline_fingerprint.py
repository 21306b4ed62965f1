"""What a step reaches, and what it does not."""

import ast
import os
import sys
import time
from pathlib import Path

import pytest
from pipeline_support import Project

from mlops_nb.notebook.source import read_step
from mlops_nb.pipeline.definitions import meaning, uses_of
from mlops_nb.pipeline.distributions import ABSENT, Distributions, installation_state
from mlops_nb.pipeline.fingerprint import Fingerprints, key_of, step_code
from mlops_nb.pipeline.modules import module_facts
from mlops_nb.pipeline.reach import Sources, reach
from mlops_nb.pipeline.statcache import StatCache


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path / "project")


def reached(project, code, **modules):
    """What some code reaches in a project with these modules: `pkg__mod` is `pkg/mod.py`, `pkg__` its `__init__.py`."""
    for name, text in modules.items():
        parts = name.split("__")
        project.file("/".join([*parts[:-1], parts[-1] or "__init__"]) + ".py", text)
    return reach(Sources(project.folder), uses_of(ast.parse(code).body, main=True).document())


def names(found):
    return sorted(found.definitions)


def test_transitive(project):
    found = reached(
        project,
        "from a import top\ntop()",
        a="""
from b import Base, deco, LIMIT
import c
@deco
def top(x=LIMIT, y=c.table["k"]):
    class In(Base): ...
    return In
""",
        b="""
class Root: ...
class Base(Root): ...
def deco(f): return inner(f)
def inner(f): return f
LIMIT = 3
OTHER = 4
""",
        c="table = {'k': value()}\ndef value(): return 1\ndef unrelated(): return 2",
    )
    assert names(found) == ["a:", "a:top", "b:Base", "b:LIMIT", "b:Root", "b:deco", "b:inner", "c:table", "c:value"]


def test_imports_inside_functions(project):
    found = reached(
        project,
        "from a import f\nf()",
        a="""
def f():
    from b import g as h
    import json, numpy as np
    return h(np, json)
def other():
    import pandas
""",
        b="def g(): ...\ndef unused(): ...",
    )
    assert names(found) == ["a:f", "b:g"]
    assert found.packages == {"numpy"}


def test_local_variables_hide_definitions(project):
    module = "def f(scale):\n    rows = [row for row in scale]\n    return rows\n"
    module += "def scale(): ...\ndef rows(): ...\ndef row(): ..."
    assert names(reached(project, "from a import f\nf(1)", a=module)) == ["a:f"]
    module = "count = 0\ndef f():\n    global count\n    count += 1\n    return count"
    assert names(reached(project, "from a import f\nf()", a=module)) == ["a:count", "a:f"]


def test_packages_and_reexports(project):
    found = reached(
        project,
        "import churn\nchurn.fit()",
        churn__="from .models import fit\nfrom . import plots\nVERSION = 1",
        churn__models="from .deep.core import solve\ndef fit(): return solve()",
        churn__plots="print('set up')\ndef plot(): ...",
        churn__deep__core="def solve(): ...\ndef other(): ...",
    )
    assert names(found) == ["churn.__init__:fit", "churn.deep.core:solve", "churn.models:fit", "churn.plots:"]


def test_star_imports(project):
    found = reached(project, "from a import *\nf()", a="from b import *\ndef g(): ...", b="def f(): ...\ndef h(): ...")
    assert names(found) == ["a:f", "b:f"]


def test_module_objects_count_wholly(project):
    modules = {
        "a": "import b\ndef f(name): return getattr(b, name)",
        "b": "from c import z\ndef x(): ...\ndef y(): ...",
    }
    found = reached(project, "from a import f\nf('x')", **modules, c="def z(): ...\ndef w(): ...")
    assert names(found) == ["a:f", "b:x", "b:y", "b:z", "c:z"]
    constant = reached(project, "import a2\na2.f()", a2="import b\ndef f(): return getattr(b, 'x')()")
    assert names(constant) == ["a2:f", "b:x"]


@pytest.mark.parametrize(
    "body",
    ["return globals()[n]()", "return eval(n)", "exec(n)", "import sys; return sys.modules[n]", "return __import__(n)"],
)
def test_dynamic_code_counts_its_module(project, body):
    found = reached(project, "from a import f\nf('g')", a=f"def f(n):\n    {body}\ndef g(): ...\ndef h(): ...")
    assert names(found) == ["a:f", "a:g", "a:h"]


def test_computed_imports(project):
    computed = "from importlib import import_module\ndef f(n): return import_module(n)\ndef g(): ..."
    assert "a:g" in names(reached(project, "from a import f\nf('b')", a=computed))
    literal = "from importlib import import_module\ndef f(): return import_module('b').x()\ndef g(): ..."
    assert names(reached(project, "from a2 import f\nf()", a2=literal, b="def x(): ...")) == ["a2:f", "b:x"]


def test_texts_that_name_code(project):
    found = reached(project, "from a import TABLE\nTABLE", a="TABLE = {'x': 'b:f', 'time': '12:30'}", b="def f(): ...")
    assert names(found) == ["a:TABLE", "b:f"]


def test_guarded_blocks_do_not_count(project):
    guarded = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from b import X\ndef f(): ...\n"
    guarded += "if __name__ == '__main__':\n    f()\n"
    assert names(reached(project, "from a import f\nf()", a=guarded, b="class X: ...")) == ["a:f"]


def test_circular_imports(project):
    found = reached(
        project, "import a\na.f()", a="import b\ndef f(): return b.g()", b="import a\ndef g(): return a.f()"
    )
    assert names(found) == ["a:f", "b:g"]


def test_a_module_of_the_project_hides_an_installed_one(project):
    assert "numpy:f" in names(reached(project, "import numpy\nnumpy.f()", numpy="def f(): ..."))


def test_folders_without_init_come_last(project):
    (project.folder / "pandas").mkdir()
    project.file("pandas/notes.py", "x = 1")
    assert reached(project, "import pandas\npandas.x").packages == {"pandas"}
    assert names(reached(project, "import spaces.a\nspaces.a.x", spaces__a="x = 1\ny = 2")) == ["spaces.a:x"]


def test_source_on_the_python_path_is_local(project, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/shared_helpers.py").write_text("def f(): ...\ndef g(): ...")
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    found = reached(project, "from shared_helpers import f\nf()")
    assert names(found) == ["shared_helpers:f"] and found.packages == set()


def test_computing_rooms_count_and_plumbing_does_not(project):
    found = reached(
        project,
        "from mlops_nb import Table, Metrics, flow\nfrom mlops_nb.core.store import Store\nTable, Metrics, Store",
    )
    assert "mlops_nb.data.table:Table" in names(found)
    assert all(name.startswith("mlops_nb.data.") for name in names(found))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text + "\n\n# the end\n",
        lambda text: text.replace("    return", "    # why\n    return"),
        lambda text: text.replace("def f(x):", 'def f(x):\n    """All about f."""'),
        lambda text: text.replace("(1, 2)", "(\n    1,\n    2,\n)"),
        lambda text: ast.unparse(ast.parse(text)),
        lambda text: '"""The module."""\n' + text,
    ],
)
def test_form_does_not_count(change):
    text = "import os\nTABLE = (1, 2)\ndef f(x):\n    return [x, 'a']\n"
    before = {name: found["hash"] for name, found in module_facts(text)["definitions"].items()}
    assert {name: found["hash"] for name, found in module_facts(change(text))["definitions"].items()} == before


def test_meaning_counts():
    texts = [
        "x = 1",
        "x = 2",
        "x = '1'",
        "x = 1.0",
        "y = 1",
        "x: int = 1",
        "def x(): 1",
        "x = lambda: 1",
        "async def x(): 1",
    ]
    assert len({meaning(ast.parse(text)) for text in texts}) == len(texts)


def code_of(project, *cells):
    return [found for _, found in step_code(read_step(project.step("10_a", *cells))).cells]


def test_cells_with_magics_count_as_text(project):
    plain, magic = code_of(project, "x = 1", "%time x = 1")[1:], code_of(project, "x=1", "%time x=1")[1:]
    assert plain[0] == magic[0] and plain[1] != magic[1]
    uses = step_code(read_step(project.step("10_a", "from churn import fit", "%time fit(1)"))).uses
    assert "fit" in uses.names


def test_empty_cells_and_prose_do_not_count(project):
    assert code_of(project, "x = 1") == code_of(project, "# Title", "x = 1", "", "#| hide\n# nothing here")


def test_types_of_gives(project):
    step = project.step(
        "10_a",
        "import mlops_nb\nfrom mlops_nb import Metrics as M, Table",
        "flow.a = Table(x)\nflow.b = M({})\nflow.c = x\nflow.d, flow.e = x, y",
        "flow.f = mlops_nb.Table(x)\nflow.g = make(x)",
    )
    wanted = {"a": "Table", "b": "Metrics", "c": None, "d": None, "e": None, "f": "Table", "g": None}
    assert step_code(read_step(step)).gives == wanted


def parts_of(project, *cells, needs=()):
    step = read_step(project.step("10_a", *cells))
    values = {name: parameter.default for name, parameter in step.parameters.items()}
    return Fingerprints(project.settings).parts(step, values, dict(needs))


def test_serializers_belong_to_the_step(project):
    serializer = "mlops_nb.data.table:TableSerializer"
    needs = {"b.x": {"type": "Table", "sha256": "3f" * 32}}
    assert serializer in parts_of(project, "flow.x = mlops_nb.Table(1)")["definitions"]
    assert serializer in parts_of(project, "flow.x = [flow.b.x]", needs=needs)["definitions"]
    assert serializer in parts_of(project, "import pandas\nflow.x = pandas.read_csv('x')")["definitions"]
    assert parts_of(project, "flow.x = [1]")["definitions"] == {}


def test_needs_count_by_type_and_content(project):
    keys = {
        key_of(parts_of(project, "x = flow.b.x", needs={"b.x": {"type": kind, "sha256": digest}}))
        for kind, digest in (("Json", "aa"), ("Json", "bb"), ("Metrics", "aa"))
    }
    assert len(keys) == 3


def test_code_that_an_artifact_brings_along(project):
    project.file("churn/features.py", "class Clip:\n    limit = 3\nclass Other: ...")
    meta = {"estimator": "Ridge", "types": ["churn.features.Clip", "numpy.dtype", "no.such.Thing", "3.11"]}
    needs = {"b.x": {"type": "Json", "sha256": "3f" * 32, "meta": meta}}
    assert list(parts_of(project, "x = flow.b.x", needs=needs)["definitions"]) == ["churn.features:Clip"]


def read(path):
    """The text of a file."""
    return Path(path).read_text()


def test_a_file_is_not_trusted_too_early(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_text("one")
    os.utime(path, (time.time() - 100,) * 2)  # the time of change stays: now
    cache = StatCache(tmp_path / "cache.json")
    for _ in range(2):
        cache.get(path, "text", read)
    assert (cache.hits, cache.misses) == (0, 2)
    later = time.time_ns() + 3_000_000_000
    monkeypatch.setattr("mlops_nb.pipeline.statcache.time.time_ns", lambda: later)
    for _ in range(2):
        cache.get(path, "text", read)
    assert (cache.hits, cache.misses) == (1, 3)
    cache.save()
    path.write_text("two")
    assert StatCache(tmp_path / "cache.json").get(path, "text", read) == "two"


def fake_distribution(site, name, version, requires=()):
    """A package as pip leaves it."""
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = [
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}",
        *(f"Requires-Dist: {need}" for need in requires),
    ]
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    (info / "top_level.txt").write_text(f"{name}\n")
    (info / "RECORD").write_text(f"{name}.py,,\n")
    (site / f"{name}.py").write_text("x = 1\n")
    return info


def test_distributions_follow_requirements_not_extras(tmp_path, monkeypatch):
    site = tmp_path / "site-packages"
    fake_distribution(
        site, "tiny_one", "1.0", ["tiny-two>=1; python_version>'3'", "pandas; extra == 'all'", "missing-one"]
    )
    info = fake_distribution(site, "tiny_two", "2.0")
    monkeypatch.syspath_prepend(site)
    kept = tmp_path / "distributions.json"
    first = Distributions(kept)
    assert first.behind(["tiny_one"]) == {"tiny-one": "1.0", "tiny-two": "2.0"}
    first.save()
    assert kept.exists()
    info.rename(site / "tiny_two-2.1.dist-info")
    (site / "tiny_two-2.1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: tiny_two\nVersion: 2.1\n")
    assert Distributions(kept).behind(["tiny_one"])["tiny-two"] == "2.1"
    assert Distributions(kept).version("no-such-distribution") == ABSENT
    kept.write_text("{ torn")
    assert Distributions(kept).behind(["tiny_one"])["tiny-two"] == "2.1"
    assert installation_state([str(site), "/no/such/folder"]) != installation_state([])
    assert sys.path[0] == str(site)
