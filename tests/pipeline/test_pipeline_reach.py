"""Where a name may come from when Python leaves more than one way."""

import ast

import pytest
from pipeline_support import Project

from mlops_nb.core.errors import UsageError
from mlops_nb.pipeline.definitions import uses_of
from mlops_nb.pipeline.modules import module_facts
from mlops_nb.pipeline.reach import Sources, reach


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path / "project")


def reached(project, code, **modules):
    """What a notebook's code reaches: `pkg__mod` is the module `pkg/mod.py`, `pkg__` the package's `__init__.py`."""
    for name, text in modules.items():
        parts = name.split("__")
        project.file("/".join([*parts[:-1], parts[-1] or "__init__"]) + ".py", text)
    return sorted(reach(Sources(project.folder), uses_of(ast.parse(code).body, main=True).document()).definitions)


@pytest.mark.parametrize(
    ("code", "modules", "expected"),
    [
        ("from a import f\nf()", {"a": "from b import *\nfrom c import *", "b": "from math import *"}, "c:f"),
        ("from a import f\nf()", {"a": "from c import *\nfrom b import *", "b": "def f(): ..."}, "b:f"),
        ("from b import *\nfrom c import *\nf()", {"b": "def f(): ..."}, "c:f"),
        ("from a import f\nf()", {"a": "def f(): ...\nfrom c import *"}, "c:f"),
        ("from a import f\nf()", {"a": "from b import f\nfrom c import *", "b": "def f(): ..."}, "c:f"),
        ("from a import f\nf()", {"a": "try:\n    from c import f\nexcept ImportError:\n    from b import f"}, "c:f"),
        ("from a import f\nf()", {"a": "try:\n    from c import *\nexcept ImportError:\n    from b import *"}, "c:f"),
        ("from a import f\nf()", {"a": "if True:\n    import c as x\ndef f(): return x.f()"}, "c:f"),
        ("from a import f\nf()", {"a": "from c import f\nf = print(f)"}, "c:f"),
        ("if __name__ == '__main__':\n    from c import f\n    f()", {}, "c:f"),
        ("from a import f\nf()", {"a": "if __name__ != '__main__':\n    from c import f"}, "c:f"),
    ],
)
def test_every_origin_of_a_name_counts(project, code, modules, expected):
    assert expected in reached(project, code, **modules, c="def f(): ...\ndef g(): ...")
    assert "c:g" not in reached(project, code)


def test_a_name_of_a_package_hides_its_module(project):
    modules = {"p__": "from .inner import f as m", "p__inner": "def f(): ...\ndef g(): ...", "p__m": "x = 1"}
    assert "p.inner:f" in reached(project, "import p\np.m()", **modules)
    shown = {"q__": "from . import m", "q__m": "def f(): ...\ndef g(): ..."}
    assert reached(project, "from q.m import f\nf()", **shown) == ["q.m:f"]


@pytest.mark.parametrize(
    ("base", "bases"),
    [
        ("class B:\n    def __init_subclass__(cls): ...", "B"),
        ("class M(type): ...\nclass B(metaclass=M): ...", "B"),
        ("class B: ...\nclass C(B): ...\ndef all(): return B.__subclasses__()", "C"),
    ],
)
def test_plugins_that_a_base_class_gathers(project, base, bases):
    plugins = f"import base\nclass P(base.{bases}):\n    x = 1\nclass Q:\n    x = 1"
    found = reached(project, "import plugins\nfrom base import B\nB", base=base, plugins=plugins)
    assert "plugins:P" in found and "plugins:Q" not in found


@pytest.mark.parametrize("computed", ["f'p.sub.{n}'", "'p.sub.' + n", "f'.sub.{n}', __package__"])
def test_a_computed_import_may_lead_anywhere_in_its_package(project, computed):
    modules = {"p__": "", "p__a": f"from importlib import import_module\ndef f(n): return import_module({computed})"}
    below = {"p__sub__": "", "p__sub__x": "def g(): ...", "p__other": "def h(): ..."}
    found = reached(project, "from p.a import f\nf('x')", **modules, **below)
    assert "p.sub.x:g" in found and "p.other:h" not in found
    literal = "from importlib import import_module\ndef f(): return import_module('.other', __package__).h()"
    assert "p.other:h" in reached(project, "from p.b import f\nf()", p__b=literal)


def test_a_change_through_another_name():
    facts = module_facts("a = []\nb = a\nc = 1\nb.append(c)\nd = a")["definitions"]
    changed = module_facts("a = []\nb = a\nc = 1\nb.append(2)\nd = a")["definitions"]
    assert {name for name in facts if facts[name]["hash"] != changed[name]["hash"]} == {"a", "b"}


def test_folders_without_init_may_lie_deep(project):
    code = "from source.churn.models import fit\nfit()"
    assert reached(project, code, source__churn__models="def fit(): ...\ndef g(): ...") == ["source.churn.models:fit"]


def test_a_reached_module_that_is_no_python_is_refused_with_its_line(project):
    project.file("helper/good.py", "from .bad import f\n")
    project.file("helper/bad.py", "def f():\n    return 1 +\n")
    project.step("10_split", "from helper.good import f", "flow.train = f()")
    with pytest.raises(UsageError, match=r"^helper/bad.py, line 2: invalid syntax") as caught:
        project.plan()
    assert "nbdev-export" in caught.value.hint
    project.file("helper/bad.py", "def f():\n    return 1 + 1\n")
    assert project.plan().runs == ["split"]
    project.file("helper/bad.py", "x = '\0'\n")
    with pytest.raises(UsageError, match=r"^helper/bad.py.*null bytes"):
        project.plan()


def test_a_module_that_is_no_python_among_many_is_no_obstacle(project):
    modules = {"plugins__a": "def run(): ...", "plugins__b": "{{ template }} !"}
    code = "import importlib\nimportlib.import_module(f'plugins.{name}').run()"
    assert "plugins.a:run" in reached(project, code, **modules)
