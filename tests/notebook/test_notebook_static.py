"""Reading steps without running them: parameters, cells, uses, secrets, lint."""

import contextlib
import json
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from step_files import IMPORTS, cell, write_notebook, write_project

from mlops_nb.core.errors import UsageError
from mlops_nb.notebook import ends
from mlops_nb.notebook.cells import NotebookError, parse_cell, read_cells
from mlops_nb.notebook.engine import import_papermill
from mlops_nb.notebook.executed import as_document, first_error, notebook_bytes, settled
from mlops_nb.notebook.lint import lint_pipeline
from mlops_nb.notebook.parameters import CONVERTERS, Parameter, Path, Range, Secret, Source, bind_parameters
from mlops_nb.notebook.redact import MARK, Redactor, environment_secrets, resolve_secret
from mlops_nb.notebook.source import examine_step, read_pipeline, read_step


@pytest.fixture
def step(tmp_path):
    """Write cells as a step and read it with all its problems."""

    def read(*cells):
        return examine_step(write_notebook(tmp_path / "40_train.ipynb", *cells))

    return read


# ---- parameters


@given(st.integers())
def test_whole_numbers_survive_the_way_through_text(number):
    assert Parameter("n", "int", 0).convert(str(number)) == number


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_survive_the_way_through_text(number):
    assert Parameter("x", "float", 0.0).convert(repr(number)) == number


@given(st.lists(st.text()))
def test_lists_survive_as_json(items):
    assert CONVERTERS["list[str]"](json.dumps(items)) == items


@given(st.text(), st.sampled_from(sorted(CONVERTERS)))
def test_any_text_is_converted_or_refused_in_words(text, kind):
    try:
        Parameter("p", kind, None, step="train").convert(text)
    except UsageError as error:
        assert error.message.startswith("train.p wants")


WRONG = {
    "int": ["1.5", "1e3", True, None, float("nan"), []],
    "float": ["inf", False, [], 10**400],
    "bool": ["maybe", 1],
    "str": [5, None],
    "list[str]": [5, "[1", "[1]"],
    "list[int]": ["1,x", [1.5]],
}


@pytest.mark.parametrize(("kind", "value"), [(kind, value) for kind, values in WRONG.items() for value in values])
def test_wrong_types_are_refused(kind, value):
    with pytest.raises(UsageError, match="wants"):
        Parameter("p", kind, None).convert(value)


def test_choices_ranges_and_none():
    fold = Parameter("folds", "int", 5, choices=(3, 5, 10))
    assert fold.convert("10") == 10
    with pytest.raises(UsageError, match="wants one of 3, 5, 10"):
        fold.convert("4")
    rate = Parameter("rate", "float", 0.1, low=0, high=1, optional=True)
    assert [rate.convert("none"), rate.convert(""), rate.convert("0.5"), rate.convert(None)] == [None, None, 0.5, None]
    with pytest.raises(UsageError, match=r"at most 1, and 1\.5 is more"):
        rate.convert(1.5)
    with pytest.raises(UsageError, match="Put the smaller number first"):
        Range(2, 1)


def test_a_secret_is_never_repeated():
    password = Parameter("password", "str", "env:X", kind="secret")
    with pytest.raises(UsageError) as caught:
        password.convert("hunter22")
    assert "hunter22" not in str(caught.value) and "hunter22" not in json.dumps(caught.value.document())


def test_unknown_parameters_get_a_suggestion():
    with pytest.raises(UsageError, match=r"no parameter 'train\.sed'.*\n.*Did you mean 'seed'"):
        bind_parameters({"seed": Parameter("seed", "int", 0)}, {"sed": 1}, "train")


def test_markers_are_text_to_type_checkers():
    source: Source = "a.csv"
    path: Path = "b"
    secret: Secret = "env:C"
    assert all(isinstance(value, str) for value in (source, path, secret))


# ---- cells


@pytest.mark.parametrize(
    ("source", "python"),
    [
        ("%%time\nx = 1", "x = 1"),
        ("%%html\n<b>", ""),
        ("# note\n%%bash\nls", ""),
        ("!pip install x", "pass"),
        ("for i in x:\n    !ls {i}\n    %time f(i)", "for i in x:\n    pass\n    f(i)"),
        ("x = %env HOME\ny = !ls\nz?", "x = None\ny = None\npass"),
        ("%timeit -n 3 -r 2 g(x)", "g(x)"),
        ("text = '''\n%not a magic\n!nor this\n'''", "text = '\\n%not a magic\\n!nor this\\n'"),
        ("await run()", "await run()"),
        ("a = (1 +\n     %time 2)", None),
        ("%time", "pass"),
        ("!ls \\\n  -l\nx = 1", "pass\nx = 1"),
    ],
)
def test_ipythons_syntax(source, python):
    import ast

    if python is None:
        assert ast.unparse(parse_cell(source)) == "a = 1 + 2"
    else:
        assert ast.unparse(parse_cell(source)) == python


@given(st.text())
def test_any_cell_is_parsed_or_a_syntax_error(text):
    with contextlib.suppress(SyntaxError, ValueError):
        assert parse_cell(text).body is not None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no valid JSON"),
        ("{", "no valid JSON"),
        ("[]", "no list of cells"),
        ('{"cells": {}}', "no list of cells"),
        ('{"worksheets": []}', "in an old format"),
        ('{"cells": [3], "metadata": {}}', "no cell"),
        ('{"cells": [{"cell_type": "code"}], "metadata": {}}', "no cell"),
        ('{"cells": [], "metadata": {"language_info": {"name": "julia"}}}', "written in julia"),
        ("\xff\xfe", "no valid JSON"),
    ],
)
def test_files_that_are_no_notebooks(tmp_path, content, message):
    path = tmp_path / "10_x.ipynb"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(NotebookError, match=message) as caught:
        read_cells(path)
    assert caught.value.notebook == "10_x.ipynb" and caught.value.hint


# ---- steps


def test_ids_tags_and_skipped_cells(step):
    skipped = {**cell("flow.gone = 1"), "metadata": {"tags": ["skip-execution"]}}
    found = step(IMPORTS, skipped, {**cell("x = 1"), "source": ["# ---\n", "y = flow.split.train"]}, "flow.model = y")
    assert not found.problems
    assert [give.name for give in found.gives] == ["model"]
    assert [need[:] for need in found.needs] == [("split", "train", False, 3, 2)]
    assert [one.number for one in found.cells] == [1, 2, 3, 4] and found.cells[3].id == "cell-3"


def test_another_flow_is_not_ours(step):
    assert not step("from prefect import flow", "@flow\ndef pipe(): return flow.x", "pipe(flow)").problems
    assert not step("flow = 3", "print(flow + 1)").problems


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("flow.model = 1", "never imported"),
        ("from mlops_nb import flow as f\nf.model = 1", "under another name"),
        ("import mlops_nb\nmlops_nb.flow.model = 1", "`mlops_nb.flow` cannot be read"),
        (f"{IMPORTS}\nfrom prefect import flow", "from two places"),
        (f"{IMPORTS}\ndef f(flow): pass", "taken for an argument"),
        (f"{IMPORTS}\nwith open(x) as flow.a: pass", "something else than a plain assignment"),
        (f"{IMPORTS}\nfor flow.a in x: pass", "something else than a plain assignment"),
        (f"{IMPORTS}\nx = [flow]", "handed on"),
        (f"{IMPORTS}\nx = flow['split'].train", "handed on"),
        (f"{IMPORTS}\nx = flow.split['*']", "names a step, but no artifact"),
        (f"{IMPORTS}\nx = flow.split._train", "underscore"),
        (f"{IMPORTS}\nflow._x = 1", "underscore"),
        (f"{IMPORTS}\nx = flow.train.model", "its own artifact"),
        (f"{IMPORTS}\nflow.a = 1\nif x: flow.a = 2", "given twice, first in cell 1"),
    ],
)
def test_what_cannot_be_seen_through_is_an_error(step, source, message):
    problems = step(source).problems
    assert any(message in problem.message for problem in problems), problems
    assert all(problem.notebook and problem.cell == 1 and problem.line and problem.hint for problem in problems)


@pytest.mark.parametrize("source", ["flow", "flow.split", "display(flow)", "print(flow.split)", "dir(flow)"])
def test_a_look_is_allowed(step, source):
    found = step(IMPORTS, source)
    assert (found.problems, found.needs) == ([], [])


def test_a_pipeline_is_read_in_milliseconds(tmp_path):
    folder = write_project(tmp_path / "demo")
    for number in range(30, 70, 10):
        write_notebook(folder / f"{number}_s{number}.ipynb", IMPORTS, *["x = f(flow.make.rows)\nx.plot()"] * 20)
    read_pipeline(folder)
    start = time.perf_counter()
    assert len(read_pipeline(folder)) == 6
    assert time.perf_counter() - start < 0.2


def test_names_are_unique_and_folders_have_steps(tmp_path):
    with pytest.raises(UsageError, match="There is no folder"):
        read_pipeline(tmp_path / "none")
    with pytest.raises(UsageError, match="There is no step"):
        read_pipeline(tmp_path)
    write_notebook(tmp_path / "Untitled.ipynb", "x = (")
    write_notebook(tmp_path / "10_a.ipynb", "1")
    assert [step.name for step in read_pipeline(tmp_path)] == ["a"]
    write_notebook(tmp_path / "20_a.ipynb", "1")
    with pytest.raises(UsageError, match="two steps 'a'"):
        read_pipeline(tmp_path)


def test_reading_imports_nothing_heavy(tmp_path):
    write_notebook(tmp_path / "10_a.ipynb", IMPORTS, "#| parameters\nn: int = 3  # rows", "flow.a = n")
    code = (
        "import sys; from mlops_nb.notebook.source import read_pipeline; from mlops_nb.notebook.engine import Engine; "
        "from mlops_nb.notebook.lint import lint_pipeline; read_pipeline(sys.argv[1]); lint_pipeline(sys.argv[1]); "
        "heavy = {'pandas', 'numpy', 'sklearn', 'papermill', 'nbformat', 'nbclient', 'IPython', 'sqlalchemy'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr


# ---- secrets


@given(st.text(min_size=4), st.text(), st.text())
def test_a_secret_is_gone_in_every_form(secret, before, after):
    text = f"{before} {secret} {json.dumps([secret])} {after}"
    assert not [piece for piece in Redactor([secret]).text(text).split(MARK) if secret in piece]


def test_redaction_goes_through_whole_documents():
    redactor = Redactor(["hunter22", "line one\nline two"])
    value = {"a hunter22": ["x", {"b": "line one\nline two"}], "image/png": "hunter22", "n": 3, "t": ("hunter22",)}
    clean = redactor.json(value)
    assert clean == {f"a {MARK}": ["x", {"b": MARK}], "image/png": "hunter22", "n": 3, "t": [MARK]}


def test_secrets_of_the_environment_are_chosen_by_name_and_shape(tmp_path):
    (tmp_path / "key.pem").write_text("x")
    environment = {
        "AWS_SECRET_ACCESS_KEY": "abcdefgh12",
        "db_password": "correct horse",
        "PATH": "/usr/bin:/bin/and/more",
        "TLS_KEY": str(tmp_path / "key.pem"),
        "TOKEN": "short",
        "KEY_USE": "required",
    }
    assert environment_secrets(environment) == ["abcdefgh12", "correct horse"]


@pytest.mark.parametrize("reference", ["", "env:", "hunter22", "vault:x", 3, None, "file:/nowhere/at/all"])
def test_references_that_lead_nowhere(reference):
    with pytest.raises(UsageError) as caught:
        resolve_secret(reference)
    assert "hunter22" not in str(caught.value)


# ---- executed notebooks


@given(st.text(alphabet="ab\r\b\n"))
def test_settling_is_stable(text):
    once = settled(text)
    assert settled(once) == once and "\r" not in once and "\b" not in once


def test_the_bytes_are_nbformats(tmp_path):
    import_papermill()  # imports nbformat quickly
    import nbformat

    outputs = [
        {"output_type": "execute_result", "execution_count": 1, "metadata": {}, "data": {"text/plain": "a\nb"}},
        {"output_type": "display_data", "metadata": {}, "data": {"application/json": {"z": 1, "a": [1, 2]}}},
        {"output_type": "error", "ename": "E", "evalue": "v", "traceback": ["t"]},
    ]
    code = {**cell("x\n\ny\u2028z"), "id": "same", "outputs": outputs}
    attached = {**cell("# t"), "id": "same", "attachments": {"a.txt": {"text/plain": "one\ntwo"}}}
    document = as_document({"cells": [code, attached, {**cell("z"), "id": ""}], "metadata": {"orig_nbformat": 2}})
    content = notebook_bytes(document).decode()
    node = nbformat.reads(content, as_version=nbformat.NO_CONVERT)
    nbformat.validate(node)
    assert nbformat.writes(node) + "\n" == content
    assert len({one["id"] for one in node.cells}) == 3


def test_expected_errors_are_no_failures():
    error = {"output_type": "error", "ename": "E", "evalue": "v", "traceback": []}
    code = {**cell("x"), "metadata": {"tags": ["raises-exception"]}, "outputs": [error]}
    assert first_error({"cells": [code]}) is None
    assert first_error({"cells": [{**cell("x"), "outputs": [error]}]})["line"] is None


# ---- lint


def rules(folder, **options):
    return {(finding.rule, finding.level) for finding in lint_pipeline(folder, **options)}


def test_lint_finds_nothing_in_a_good_pipeline(tmp_path):
    assert lint_pipeline(write_project(tmp_path / "demo")) == []


def test_lint_lists_broken_notebooks_beside_the_others(tmp_path):
    (tmp_path / "10_a.ipynb").write_text("<<<<<<< HEAD\n{}")
    write_notebook(tmp_path / "20_import.ipynb", "1")
    write_notebook(tmp_path / "30_c.ipynb", "x = (", "<<<<<<< HEAD\ny = 1", "#| foo\n#| exprot")
    write_notebook(tmp_path / "40_d.ipynb", {**cell("n = 3"), "metadata": {"tags": ["injected-parameters"]}})
    found = rules(tmp_path)
    assert {("conflict", "error"), ("name", "error"), ("syntax", "error"), ("injected", "warning")} <= found
    assert {("directive", "error"), ("directive", "warning")} <= found


PAST_THE_KEY = """
pd.read_parquet(f"{x}.parquet")
open("a")
Path("a").read_text()
pl.scan_csv("a")
np.loadtxt("a")
os.getenv("X")
os.environ.get("X")
load_settings()
"""


@pytest.mark.parametrize("source", PAST_THE_KEY.split("\n")[1:-1])
def test_lint_sees_what_the_cache_key_does_not(tmp_path, source):
    write_notebook(tmp_path / "10_a.ipynb", source)
    assert rules(tmp_path) == {("reads", "warning")}


@pytest.mark.parametrize("source", ["pd.read_csv(source)", "open('a', 'w')", "Path('a').open(mode='x')", "x.open()"])
def test_lint_does_not_see_ghosts(tmp_path, source):
    write_notebook(tmp_path / "10_a.ipynb", source)
    assert rules(tmp_path) == set()


@pytest.mark.parametrize("indent", [None, 1, 2, 4])
@pytest.mark.parametrize("end", ["", "\n"])
def test_mending_changes_only_the_parameters_cell(tmp_path, indent, end):
    path = write_notebook(tmp_path / "10_a.ipynb", "# Größe", "import os", "n: int = 3", "n")
    content = json.loads(path.read_text())
    content["cells"][2]["metadata"] = {"tags": ["parameters", "keep"]}
    before = json.dumps(content, indent=indent, ensure_ascii=False) + end
    path.write_text(before, encoding="utf-8")
    assert rules(tmp_path) == {("parameters-comment", "error")}
    assert rules(tmp_path, fix=True) == set()
    content["cells"][2]["source"] = "#| parameters\nn: int = 3"
    assert path.read_text(encoding="utf-8") == json.dumps(content, indent=indent, ensure_ascii=False) + end
    assert read_step(path).parameters["n"].default == 3


# ---- declarations


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("n: int = x", "not a literal"),
        ("n: int = 2 * 3", "not a literal"),
        ("n: int = 'a'", "no int"),
        ("n: bool = 1", "no bool"),
        ("n: int = None", "no int"),
        ("n: list[str] = [1]", "no list"),
        ("n: list = []", "annotation `list` is unknown"),
        ("n: Literal['a', 'b'] = 'c'", "wants one of"),
        ("n: Annotated[int, Range(1, 5)] = 9", "at most 5"),
        ("n: Annotated[int, Gauss(1)] = 9", "none of Range"),
        ("n: Annotated[float, LogRange(0, 1)] = 0.5", "does not work"),
        ("n: Secret = 'hunter22'", "reference to a secret"),
        ("n: 'int |' = 3", "no Python"),
        ("n = m = 3", "something else than parameters"),
        ("n += 3", "something else than parameters"),
        ("flow: int = 3", "cannot be the name"),
        ("n: int", "has no default"),
    ],
)
def test_declarations_that_do_not_work(step, line, message):
    problems = [problem for problem in step(f"#| parameters\n{line}").problems if problem.rule == "parameters"]
    assert len(problems) == 1
    assert message in problems[0].message and problems[0].hint and problems[0].line == 2
    assert "hunter22" not in str(problems[0])


def test_declarations_that_work(step):
    found = step(
        "#| parameters\n"
        "a: t.Optional[str] = None  # text # more\n"
        "b: float = 1\n"
        "c: Union[int, None] = -3\n"
        "d: Literal['x', None] = None\n"
        "e: list[float] = [1, 2.5]\n"
        "f = [\n    1,  # one\n    2,\n]  # numbers\n"
        "g: 'Path | None' = None\n"
        "'''about'''\n"
        "h: Annotated[int | None, Range(low=1)] = None\n"
    )
    assert not found.problems
    parameters = found.parameters
    assert parameters["a"].help == "text # more" and parameters["f"].help == "numbers"
    assert [parameters[name].default for name in "bcef"] == [1.0, -3, [1.0, 2.5], [1, 2]]
    assert isinstance(parameters["b"].default, float) and parameters["d"].optional
    assert (parameters["g"].kind, parameters["h"].low, parameters["h"].optional) == ("path", 1, True)


# ---- ends


@pytest.mark.parametrize(
    ("counts", "starved", "told"),
    [
        ("nr_free_pages 7\noom_kill 3\n", True, "memory ran out; the largest"),
        ("nr_free_pages 7\noom_kill 3\n", False, "somebody or something killed it"),
        ("nr_free_pages 7\n", False, "memory ran out, most likely"),
        (None, False, "memory ran out, most likely"),
        ("oom_kill 3\n", None, "memory ran out, most likely"),
    ],
)
def test_a_killed_kernel_ran_out_of_memory_only_if_linux_says_so(tmp_path, monkeypatch, counts, starved, told):
    if counts is not None:
        (tmp_path / "vmstat").write_text(counts)
    monkeypatch.setattr(ends, "COUNTS", tmp_path / "vmstat")
    assert f"killed by SIGKILL: {told}" in ends.death(-9, starved)
    assert ends.out_of_memory_kills() == (3 if counts and "oom_kill" in counts else 0)
