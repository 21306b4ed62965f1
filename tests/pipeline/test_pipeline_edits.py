"""A project of thirty steps, edited in every way a person edits; each edit re-runs the steps it should, and says why.

One project is edited in place and put back each time, so that everything that is remembered between plans is in use.
"""

import os
import re
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from pipeline_support import Project, settle
from test_pipeline_fingerprint import fake_distribution

MODULES = {
    "__init__": "from shop.deep import innermost as public\nfrom shop.swapped import first as one, second as two\n"
    '__version__ = "1.0"\n',
    "swapped": "def first(x):\n    return 1\n\ndef second(x):\n    return 2\n",
    "renamed": "from math import floor as down, ceil as up\nfrom shop.swapped import first as low, second as high\n\n"
    "def span(x):\n    return up(x) - down(x), low(x), high(x)\n",
    "twofold": "from shop.stars import *\nfrom shop.starlike import *\n\ndef shine(x):\n    return starred(x)\n",
    "starlike": "def starred(x):\n    return 8\n",
    "sequence": """
TABLE = {"a": 1}
COPY = dict(TABLE)
TABLE["a"] = 2
""",
    "deep": "UNIT = 2\n\ndef innermost(x):\n    return x * UNIT\n\ndef aside(x):\n    return x - 1\n",
    "helpers": """
from shop.deep import innermost

def outer(x):
    "Outer"
    return middle(x) + 1  # one more

def middle(x):
    return innermost(x) / 3

def unrelated(x):
    return [x, x]
""",
    "wrappers": "import functools\n\ndef logged(f):\n    @functools.wraps(f)\n    def wrapped(*given):\n"
    "        return f(*given) + 10\n    return wrapped\n",
    "decorated": "from shop.wrappers import logged\n\n@logged\ndef price(x):\n    return x\n",
    "bases": "class Base:\n    def value(self):\n        return 1\n\nclass Stranger:\n    other = 5\n",
    "classes": """
from shop.bases import Base
from shop.deep import innermost

class Derived(Base):
    size = 20

    def value(self):
        return super().value() + self.size

    @property
    def area(self):
        return innermost(self.size)

class Sibling(Base):
    size = 30
""",
    "tables": 'RATES = {"eu": 0.2, "us": 0.1}\nOTHER = {"eu": 9}\nRATES["uk"] = 0.3\n\ndef rate(place):\n'
    "    return RATES[place]\n",
    "defaults": "START = 7\n\ndef begin(x, start=START):\n    return x + start\n\ndef stop(x, *, end=99):\n"
    "    return x - end\n",
    "dynamic": "from importlib import import_module\n\ndef plugin(name):\n"
    '    return import_module(f"shop.plugins.{name}").run()\n',
    "plugins/__init__": "",
    "plugins/first": "def run():\n    return 1\n",
    "executed": 'def compute(text):\n    return exec(text)\n\ndef bystander():\n    return "in the same module"\n',
    "stars": "def starred(x):\n    return x + 0.5\n\ndef dim(x):\n    return -x\n\n_HIDDEN = 1\n",
    "passing": "from shop.stars import *\n\ndef through(x):\n    return starred(x)\n",
    "relative": "from . import tables\nfrom .deep import innermost as inner\n\ndef near(x):\n"
    '    return inner(x) * tables.rate("eu")\n',
    "heavy": "class Heavy:\n    weight = 1000\n",
    "typed": "from __future__ import annotations\nfrom typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n"
    "    from shop.heavy import Heavy\n\ndef weigh(x: Heavy) -> int:\n    total: int = 3\n    return total\n",
    "records": """
from dataclasses import dataclass, field

def fresh():
    return [1]

@dataclass
class Order:
    count: int = 3
    items: list = field(default_factory=fresh)
""",
    "partials": "from functools import partial\n\ndef power(base, x):\n    return base ** x\n\n"
    "square = partial(power, 2)\n",
    "lambdas": "def triple(x):\n    return 3 * x\n\n"
    "ACTIONS = {'triple': lambda x: triple(x), 'nothing': lambda x: x}\n",
    "texts": 'def unit():\n    return "EUR"\n\ndef label(x):\n    return f"{x} {unit()}"\n',
    "aliases": "Number = int | float\n\ndef is_number(x):\n    return isinstance(x, Number)\n",
    "environment": 'import os\n\ndef mode():\n    return os.environ.get("SHOP_MODE", "plain")\n',
    "versions": "def stamp():\n    import tiny_one\n    return tiny_one.x\n",
    "shapes": """
from functools import singledispatch

class Circle:
    radius = 1

@singledispatch
def area(shape):
    return 0

@area.register
def _(shape: Circle):
    return 3 * shape.radius
""",
    "registry": """
class Check:
    known = []

    def __init_subclass__(cls):
        Check.known.append(cls)

class Positive(Check):
    limit = 0
""",
    "choices": "import sys\n\nif sys.platform == 'never':\n    def pick():\n        return 1\nelse:\n"
    "    def pick():\n        return 2\n",
    "patches": 'import shop.tables\n\nshop.tables.OTHER["eu"] = 10\n',
    "loops": "from contextlib import contextmanager\n\n@contextmanager\ndef opened():\n    yield 4\n\n"
    "def total(rows):\n    with opened() as extra:\n        return sum(clean(row) for row in rows) + extra\n\n"
    "def clean(row):\n    return row or 0\n",
}
SOURCE = "from mlops_nb import Source"
STEPS = {  # name -> code cells after the first, which imports flow
    "load": [
        SOURCE,
        "#| parameters\nsource: Source = 'data/shop.csv'  # the table",
        "flow.table = open(source).read()",
    ],
    "folder": ["from mlops_nb import Path", "#| parameters\nplace: Path = 'data/images'  # pictures", "flow.x = place"],
    "helper": ["from shop.helpers import outer", "## How", "y = outer(3)", "flow.x = y"],
    "tuned": ["#| parameters\nrate: float = 0.5  # how fast\nname: str = 'a'", "flow.x = rate"],
    "decorated": ["from shop.decorated import price", "flow.x = price(1)"],
    "derived": ["from shop.classes import Derived", "flow.x = Derived().value()"],
    "table": ["from shop.tables import rate", "flow.x = rate('eu')"],
    "default": ["from shop.defaults import begin", "flow.x = begin(1)"],
    "keyword": ["import shop.defaults as d", "flow.x = d.stop(1)"],
    "dynamic": ["from shop.dynamic import plugin", "flow.x = plugin('first')"],
    "executed": ["from shop.executed import compute", "flow.x = compute('1')"],
    "starry": ["from shop.stars import *", "flow.x = starred(1)"],
    "passing": ["from shop.passing import through", "flow.x = through(1)"],
    "public": ["from shop import public", "flow.x = public(1)"],
    "swap": ["from shop import one, two", "flow.x = [one(1), two(1)]"],
    "renamed": ["from shop.renamed import span", "flow.x = span(1)"],
    "twofold": ["from shop.twofold import shine", "flow.x = shine(1)"],
    "sequence": ["from shop.sequence import COPY", "flow.x = COPY"],
    "relative": ["from shop.relative import near", "flow.x = near(1)"],
    "typed": ["from shop.typed import weigh", "flow.x = weigh(1)"],
    "record": ["from shop.records import Order", "flow.x = Order().count"],
    "partial": ["from shop.partials import square", "flow.x = square(3)"],
    "lambdas": ["from shop.lambdas import ACTIONS", "flow.x = ACTIONS['triple'](1)"],
    "texts": ["from shop import texts", "flow.x = texts.label(1)"],
    "aliases": ["from shop.aliases import is_number", "flow.x = is_number(1)"],
    "environment": ["from shop.environment import mode", "flow.x = mode()"],
    "version": ["from shop.versions import stamp", "flow.x = stamp()"],
    "shapes": ["from shop.shapes import area", "flow.x = area(1)"],
    "registry": ["import shop.registry", "from shop.registry import Check", "flow.x = len(Check.known)"],
    "choice": ["from shop.choices import pick", "flow.x = pick()"],
    "patched": ["import shop.patches\nfrom shop.tables import OTHER", "flow.x = OTHER['eu']"],
    "loops": ["from shop.loops import total", "flow.x = total([1])"],
    "alone": ["x = 1", "%time x", "flow.x = x + 1"],
    "join": ["def both(a, b):\n    return [a, b]", "flow.x = both(flow.helper.x, flow.table.x)"],
    "report": ["flow.x = len(flow.join.x)"],
}
HASHES = r" changed \([0-9a-f]{4} -> [0-9a-f]{4}\)"
GONE = r" is no longer reached \(was [0-9a-f]{4}\)"
WAITS = {"helper": ["join"], "table": ["join"], "join": ["report"]}  # who reads what a step gives


def build(folder: Path) -> Project:
    """The project, as it is before any edit."""
    project = Project(folder)
    for name, text in MODULES.items():
        project.file(f"shop/{name}.py", text)
    project.file("data/shop.csv", "a,b\n1,2\n")
    project.file("data/images/one.txt", "one")
    for number, (name, cells) in enumerate(STEPS.items(), 10):
        project.step(f"{number}_{name}", *cells)
    return project


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Every step has a good result; the clock is ten seconds ahead, so that files count as left alone."""
    folder, real = tmp_path_factory.mktemp("edits"), time.time_ns
    for name in ("one", "two", "three"):
        fake_distribution(folder / "site-packages", f"tiny_{name}", "1.0", ["tiny_two"] if name == "one" else [])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlops_nb.pipeline.statcache.time.time_ns", lambda: real() + 10_000_000_000)
        patch.syspath_prepend(folder / "site-packages")
        made = build(folder / "project")
        settle(made)
        yield made


@pytest.fixture
def edited(project):
    """The project; whatever a test changes in it is put back."""
    site = project.folder.parent / "site-packages"
    places = [project.folder / "shop", project.folder / "data", project.folder / "nbs", site]
    before = {path: path.read_bytes() for place in places for path in place.rglob("*") if path.is_file()}
    yield project
    for place in places:
        for path in [path for path in place.rglob("*") if path.is_file()]:
            if path not in before:
                path.unlink()
                if not list(path.parent.iterdir()):
                    path.parent.rmdir()
    for path, content in before.items():
        if not path.exists() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def reasons(project: Project, **options) -> dict[str, list[str]]:
    """Step -> why it runs."""
    decisions = project.plan(**options).decisions
    return {name: decision.reasons for name, decision in decisions.items() if decision.action == "run"}


def change(project: Project, name: str, old: str, new: str) -> None:
    """Replace a text in a module, or in whatever file the name names."""
    path = project.folder / (name if "/" in name and "." in name else f"shop/{name}.py")
    text = path.read_text()
    assert old in text, f"{old!r} is not in {name}"
    path.write_text(text.replace(old, new, 1))


def downstream(steps: set[str]) -> dict[str, list[str]]:
    """Step -> what it waits for, of the steps that only run because others do."""
    found: dict[str, list[str]] = {}
    todo = sorted(steps)
    while todo:
        name = todo.pop(0)
        for reader in WAITS.get(name, ()):
            found.setdefault(reader, []).append(f"waits for {name}")
            todo += [reader] if len(found[reader]) == 1 else []
    return found


def expect(project: Project, wanted: dict[str, str], **options) -> None:
    """Exactly the wanted steps run, each for the reasons that its pattern describes; what reads them waits."""
    found, waiting = reasons(project, **options), downstream(set(wanted))
    assert set(found) == {*wanted, *waiting}
    for name, pattern in wanted.items():
        told = [reason for reason in found[name] if reason not in waiting.get(name, ())]
        assert re.fullmatch(pattern, "; ".join(told)), (name, told)
    for name in waiting.keys() - wanted.keys():
        assert found[name] == waiting[name]


def code(module: str, name: str, *steps: str) -> dict[str, str]:
    """Steps that re-run because of one definition."""
    return dict.fromkeys(steps, re.escape(f"shop/{module}.py::{name}") + HASHES)


def imported(module: str, *steps: str) -> dict[str, str]:
    """Steps that re-run because of what every import of a module runs."""
    return dict.fromkeys(steps, re.escape(f"shop/{module}.py (run by every import)") + HASHES)


class Edit(NamedTuple):
    """A text replaced in a module, and the steps that should re-run for it."""

    module: str
    old: str
    new: str
    wanted: dict[str, str]


SWAPPED = {"swap": rf"shop/__init__\.py::one{HASHES}; shop/__init__\.py::two{HASHES}"}
HIDDEN = rf"shop/helpers\.py::outer{HASHES}(; shop/(deep|helpers)\.py::\w+{GONE}){{3}}"
MOVED = rf"shop/helpers\.py::middle{HASHES}; shop/helpers\.py::innermost is reached now .*(; .*{GONE}){{2}}"
INNER = ("helper", "public", "relative", "derived")
MODULE_EDITS = {
    "a function": Edit("helpers", "+ 1", "+ 2", code("helpers", "outer", "helper")),
    "a helper": Edit("helpers", "/ 3", "/ 4", code("helpers", "middle", "helper")),
    "a helper of a helper": Edit("deep", "x * UNIT", "UNIT * x", code("deep", "innermost", *INNER)),
    "a constant of a helper of a helper": Edit("deep", "UNIT = 2", "UNIT = 3", code("deep", "UNIT", *INNER)),
    "a decorator": Edit("wrappers", "+ 10", "+ 11", code("wrappers", "logged", "decorated")),
    "a base class": Edit("bases", "return 1", "return 2", code("bases", "Base", "derived")),
    "a class beside the base class": Edit("bases", "other = 5", "other = 6", {}),
    "a class attribute": Edit("classes", "size = 20", "size = 21", code("classes", "Derived", "derived")),
    "a property": Edit(
        "classes",
        "innermost(self.size)",
        "-self.size",
        {"derived": rf"shop/classes\.py::Derived{HASHES}; shop/deep\.py::UNIT{GONE}; shop/deep\.py::innermost{GONE}"},
    ),
    "a sibling class": Edit("classes", "size = 30", "size = 31", {}),
    "a table": Edit("tables", "0.2", "0.25", code("tables", "RATES", "table", "relative")),
    "a table, further down": Edit("tables", "0.3", "0.35", code("tables", "RATES", "table", "relative")),
    "a table that others use": Edit("tables", "9", "8", code("tables", "OTHER", "patched")),
    "a table, from another module": Edit("patches", "= 10", "= 11", imported("patches", "patched")),
    "a default argument": Edit("defaults", "START = 7", "START = 8", code("defaults", "START", "default")),
    "a default in place": Edit(
        "defaults",
        "start=START",
        "start=1",
        {"default": rf"shop/defaults\.py::begin{HASHES}; shop/defaults\.py::START{GONE}"},
    ),
    "a keyword default": Edit("defaults", "end=99", "end=98", code("defaults", "stop", "keyword")),
    "a plugin": Edit("plugins/first", "return 1", "return 2", code("plugins/first", "run", "dynamic")),
    "the importer of plugins": Edit("dynamic", ".run()", ".run(  ) + 0", code("dynamic", "plugin", "dynamic")),
    "code that executes text": Edit(
        "executed", "exec(text)", "exec(text + 'x')", code("executed", "compute", "executed")
    ),
    "beside code that executes text": Edit(
        "executed", "in the same", "of the same", code("executed", "bystander", "executed")
    ),
    "a function behind a star": Edit(
        "stars", "+ 0.5", "+ 0.6", code("stars", "starred", "starry", "passing", "twofold")
    ),
    "another function behind a star": Edit("stars", "-x", "+x", {}),
    "who passes a star on": Edit(
        "passing", "return starred", "return 1 + starred", code("passing", "through", "passing")
    ),
    "a relative import's target": Edit("relative", "inner(x) *", "inner(x) +", code("relative", "near", "relative")),
    "what only type checkers import": Edit("heavy", "1000", "2000", {}),
    "a typed function": Edit("typed", "= 3", "= 4", code("typed", "weigh", "typed")),
    "a dataclass's field": Edit("records", "= 3", "= 4", code("records", "Order", "record")),
    "a dataclass's factory": Edit("records", "[1]", "[2]", code("records", "fresh", "record")),
    "a partial function": Edit(
        "partials", "partial(power, 2)", "partial(power, 3)", code("partials", "square", "partial")
    ),
    "the function of a partial": Edit("partials", "base ** x", "x ** base", code("partials", "power", "partial")),
    "a lambda in a table": Edit("lambdas", "lambda x: x}", "lambda x: -x}", code("lambdas", "ACTIONS", "lambdas")),
    "what a lambda calls": Edit("lambdas", "3 * x", "4 * x", code("lambdas", "triple", "lambdas")),
    "an f-string": Edit("texts", "{x} {unit", "{x}  {unit", code("texts", "label", "texts")),
    "what an f-string calls": Edit("texts", "EUR", "USD", code("texts", "unit", "texts")),
    "a type that is used at run time": Edit("aliases", "int | float", "int", code("aliases", "Number", "aliases")),
    "who reads the environment": Edit("environment", "plain", "fancy", code("environment", "mode", "environment")),
    "an import inside a function": Edit("versions", "tiny_one.x", "-tiny_one.x", code("versions", "stamp", "version")),
    "a registered implementation": Edit("shapes", "3 * shape", "4 * shape", imported("shapes", "shapes")),
    "the type it is registered for": Edit("shapes", "radius = 1", "radius = 2", code("shapes", "Circle", "shapes")),
    "a class that its base gathers": Edit(
        "registry", "limit = 0", "limit = 1", code("registry", "Positive", "registry")
    ),
    "a branch at the top of a module": Edit(
        "choices",
        "return 2",
        "return 3",
        {"choice": rf"shop/choices\.py \(run by every import\){HASHES}; shop/choices\.py::pick{HASHES}"},
    ),
    "what a comprehension calls": Edit("loops", "row or 0", "row or 1", code("loops", "clean", "loops")),
    "a context manager": Edit("loops", "yield 4", "yield 5", code("loops", "opened", "loops")),
    "a re-export under its name": Edit(
        "__init__",
        "innermost as public",
        "aside as public",
        {"public": rf"shop/__init__\.py::public{HASHES}; shop/deep\.py::aside is reached now .*{GONE}; .*{GONE}"},
    ),
    "two re-exports that change places": Edit(
        "__init__", "first as one, second as two", "first as two, second as one", SWAPPED
    ),
    "two imports that change places": Edit(
        "renamed", "first as low, second as high", "first as high, second as low", code("renamed", "span", "renamed")
    ),
    "two functions of Python that change places": Edit(
        "renamed", "floor as down, ceil as up", "floor as up, ceil as down", code("renamed", "span", "renamed")
    ),
    "two stars that change places": Edit(
        "twofold",
        "from shop.stars import *\nfrom shop.starlike import *",
        "from shop.starlike import *\nfrom shop.stars import *",
        code("twofold", "shine", "twofold"),
    ),
    "a table that is copied later": Edit(
        "sequence",
        'COPY = dict(TABLE)\nTABLE["a"] = 2',
        'TABLE["a"] = 2\nCOPY = dict(TABLE)',
        code("sequence", "COPY", "sequence"),
    ),
    "a local variable that hides a helper": Edit(
        "helpers", "    return middle(x) + 1", "    middle = abs\n    return middle(x) + 1", {"helper": HIDDEN}
    ),
    "a function that moves to another module": Edit(
        "helpers", "from shop.deep import innermost", "def innermost(x):\n    return x * 2", {"helper": MOVED}
    ),
    "a new import of a package": Edit(
        "texts", "def unit", "import tiny_three\n\ndef unit", {"texts": r"tiny-three 1\.0 is imported now"}
    ),
}


@pytest.mark.parametrize("edit", MODULE_EDITS.values(), ids=MODULE_EDITS)
def test_edits_of_modules_that_count(edited, edit):
    change(edited, edit.module, edit.old, edit.new)
    expect(edited, edit.wanted)


QUIET_EDITS = {
    "a comment": ("helpers", "# one more", "# and one"),
    "a docstring": ("helpers", '"Outer"', '"""Outer, and more"""'),
    "a docstring that goes": ("helpers", '    "Outer"\n', ""),
    "formatting": (
        "helpers",
        "return middle(x) + 1",
        "return (\n        middle(\n            x,\n        ) + 1\n    )",
    ),
    "quotes": ("texts", '"EUR"', "'EUR'"),
    "digits": ("heavy", "1000", "1_000"),
    "digits of a table": ("tables", "0.2", "0.20"),
    "an unrelated function": ("helpers", "return [x, x]", "return [x]"),
    "an unrelated function that goes": ("helpers", "\ndef unrelated(x):\n    return [x, x]\n", ""),
    "a new function": ("helpers", "def middle", "def newcomer():\n    return 0\n\ndef middle"),
    "a table made from a table": ("tables", "\ndef rate", "MORE = dict(RATES)\n\ndef rate"),
    "a function that moves": (
        "helpers",
        "def middle(x):\n    return innermost(x) / 3\n\ndef unrelated(x):\n    return [x, x]\n",
        "def unrelated(x):\n    return [x, x]\n\ndef middle(x):\n    return innermost(x) / 3\n",
    ),
    "a function below what calls it in a lambda": (
        "lambdas",
        "def triple(x):\n    return 3 * x\n\nACTIONS = {'triple': lambda x: triple(x), 'nothing': lambda x: x}\n",
        "ACTIONS = {'triple': lambda x: triple(x), 'nothing': lambda x: x}\n\ndef triple(x):\n    return 3 * x\n",
    ),
    "a local annotation": ("typed", "total: int = 3", "total: float = 3"),
    "a local annotation that goes": ("typed", "total: int = 3", "total = 3"),
    "an import for type checkers": (
        "typed",
        "    from shop.heavy",
        "    from shop.deep import aside\n    from shop.heavy",
    ),
    "an unused import of Python's": ("helpers", "\nfrom shop.deep", "\nimport json\nfrom shop.deep"),
    "a package that only others import": ("deep", "def aside(x):", "def aside(x):\n    import tiny_three"),
    "the package's version": ("__init__", '"1.0"', '"1.1"'),
    "a name that nobody uses": ("stars", "_HIDDEN = 1", "_HIDDEN = 2"),
    "a main block": ("helpers", "def unrelated", "if __name__ == '__main__':\n    print(outer(1))\n\ndef unrelated"),
}


@pytest.mark.parametrize("edit", QUIET_EDITS.values(), ids=QUIET_EDITS)
def test_edits_of_modules_that_do_not_count(edited, edit):
    change(edited, *edit)
    expect(edited, {})


@pytest.mark.parametrize(
    ("old", "new"),
    [("x: Heavy", "x: int"), ("-> int", "-> float"), ("x: Heavy", "x")],
)
def test_annotations_of_arguments_count(edited, old, new):
    """Dispatchers, validators and data classes act on them, also where they are kept as text."""
    change(edited, "typed", old, new)
    expect(edited, code("typed", "weigh", "typed"))


def rewrite(project: Project, step: str, *cells: str) -> None:
    """Write a step anew, under its number."""
    project.step(f"{[*STEPS].index(step) + 10}_{step}", *cells)


NOTEBOOK_EDITS = {
    "a cell": ("helper", [*STEPS["helper"][:3], "flow.x = y + 1"], rf"cell 5{HASHES}"),
    "two cells": ("helper", [STEPS["helper"][0], "y = outer(4)", "flow.x = y + 1"], rf"cell 3{HASHES}; cell 4{HASHES}"),
    "a new cell": ("helper", [STEPS["helper"][0], "z = 1", *STEPS["helper"][1:]], r"cell 3 is new \(.{4}\)"),
    "a cell that goes": ("alone", ["x = 1", "flow.x = x + 1"], r"cell 3 was removed \(.{4}\)"),
    "a magic": ("alone", ["x = 1", "%timeit x", "flow.x = x + 1"], rf"cell 3{HASHES}"),
    "a function in a cell": (
        "join",
        [STEPS["join"][0].replace("[a, b]", "[b, a]"), STEPS["join"][1]],
        rf"cell 2{HASHES}",
    ),
    "the order of code": ("alone", ["%time 1", "x = 1", "flow.x = x + 1"], r"cell 2 .*; cell 3 .*"),
    "a default": (
        "tuned",
        [STEPS["tuned"][0].replace("0.5", "0.6"), STEPS["tuned"][1]],
        r"parameter rate: 0\.5 -> 0\.6",
    ),
    "a new parameter": ("tuned", [STEPS["tuned"][0] + "\nz: int = 3", STEPS["tuned"][1]], "parameter z is new: 3"),
    "a parameter that goes": (
        "tuned",
        ["#| parameters\nrate: float = 0.5", STEPS["tuned"][1]],
        r"parameter name is gone \(was 'a'\)",
    ),
    "another function": (
        "helper",
        ["from shop.helpers import middle as outer", *STEPS["helper"][1:]],
        rf"cell 2{HASHES}; shop/helpers\.py::outer{GONE}",
    ),
}


@pytest.mark.parametrize("edit", NOTEBOOK_EDITS.values(), ids=NOTEBOOK_EDITS)
def test_edits_of_notebooks_that_count(edited, edit):
    step, cells, pattern = edit
    rewrite(edited, step, *cells)
    expect(edited, {step: pattern})


@pytest.mark.parametrize(
    ("step", "cells"),
    [
        ("helper", ["# A title", *STEPS["helper"], "## The end"]),
        ("helper", [STEPS["helper"][0], "## Why", *STEPS["helper"][2:]]),
        ("helper", [*STEPS["helper"][:2], "y = outer( 3 )  # three", "flow.x = y"]),
        ("helper", [*STEPS["helper"][:2], "", "#| hide\n# nothing yet", *STEPS["helper"][2:]]),
        ("tuned", [STEPS["tuned"][0].replace("how fast", "how quick"), STEPS["tuned"][1]]),
        ("tuned", ["#| parameters\nname: str = 'a'\nrate: float = 0.5", STEPS["tuned"][1]]),
        ("tuned", [STEPS["tuned"][0].replace("float", "Annotated[float, Range(0, 1)]"), STEPS["tuned"][1]]),
    ],
    ids=["prose", "a heading", "formatting", "empty cells", "help", "the order of parameters", "a range"],
)
def test_edits_of_notebooks_that_do_not_count(edited, step, cells):
    rewrite(edited, step, *cells)
    expect(edited, {})


def test_parameters(edited):
    expect(edited, {}, parameters={"tuned.rate": "0.50", "load.source": "data/../data/shop.csv"})
    expect(edited, {"tuned": r"parameter name: 'a' -> 'b'"}, parameters={"tuned.name": "b"})


def test_data(edited):
    table, folder = edited.folder / "data/shop.csv", edited.folder / "data/images"
    os.utime(table)
    table.write_bytes(table.read_bytes())
    expect(edited, {})
    edited.file("data/copy.csv", table.read_text())
    expect(edited, {}, parameters={"load.source": "data/copy.csv"})
    table.write_text("a,b\n1,3\n")
    expect(edited, {"load": rf"data file data/shop\.csv{HASHES}"})
    table.write_text("a,b\n1,2\n")
    expect(edited, {})
    for edit in (lambda: (folder / "two.txt").write_text("two"), lambda: (folder / "one.txt").write_text("uno")):
        edit()
        expect(edited, {"folder": rf"data folder data/images{HASHES}"})
    (folder / "two.txt").unlink()
    (folder / "one.txt").rename(folder / "eins.txt")
    (folder / "eins.txt").write_text("one")
    expect(edited, {"folder": rf"data folder data/images{HASHES}"})


def upgrade(project: Project, name: str, new: str) -> None:
    """Install another version, as pip does."""
    site = project.folder.parent / "site-packages"
    (old,) = site.glob(f"{name}-*.dist-info")
    text = (old / "METADATA").read_text()
    for path in old.iterdir():
        path.unlink()
    old.rmdir()
    (site / f"{name}-{new}.dist-info").mkdir()
    (site / f"{name}-{new}.dist-info/METADATA").write_text(re.sub("Version: .*", f"Version: {new}", text, count=2))
    (site / f"{name}-{new}.dist-info/top_level.txt").write_text(f"{name}\n")


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("tiny_one", {"version": r"tiny-one 1\.0 -> 1\.1"}),
        ("tiny_two", {"version": r"tiny-two 1\.0 -> 1\.1"}),
        ("tiny_three", {}),
    ],
    ids=["imported", "required", "unrelated"],
)
def test_installed_versions(edited, name, wanted):
    upgrade(edited, name, "1.1")
    expect(edited, wanted)


def test_the_environment_does_not_count(edited, monkeypatch):
    """A variable is no part of the key: `mlops-nb lint` says so where a step reads one."""
    monkeypatch.setenv("SHOP_MODE", "fancy")
    expect(edited, {})


def test_new_files(edited):
    edited.file("shop/plugins/second.py", "def run():\n    return 2\n")
    expect(edited, {"dynamic": r"shop/plugins/second\.py::run is reached now \(.{4}\)"})
    edited.file("shop/nobody.py", "def nothing(): ...\n")
    expect(edited, {"dynamic": r"shop/plugins/second\.py::run is reached now \(.{4}\)"})


def test_a_module_that_hides_an_installed_one(edited):
    edited.file("tiny_one.py", "x = 2\n")
    try:
        found = reasons(edited)
    finally:
        (edited.folder / "tiny_one.py").unlink()
    assert list(found) == ["version"] and "tiny_one.py::x is reached now" in " ".join(found["version"])


def test_many_edits_at_once(edited):
    change(edited, "deep", "UNIT = 2", "UNIT = 3")
    change(edited, "tables", "0.2", "0.25")
    rewrite(edited, "helper", *STEPS["helper"][:3], "flow.x = y + 1")
    both = rf"shop/deep\.py::UNIT{HASHES}; shop/tables\.py::RATES{HASHES}"
    wanted = code("deep", "UNIT", "public", "derived") | code("tables", "RATES", "table")
    expect(edited, {**wanted, "relative": both, "helper": rf"shop/deep\.py::UNIT{HASHES}; cell 5{HASHES}"})


def test_there_are_enough_of_them():
    assert len(STEPS) >= 30 and len(MODULE_EDITS) + len(NOTEBOOK_EDITS) >= 50
