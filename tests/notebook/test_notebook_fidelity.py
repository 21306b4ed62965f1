"""The same notebook in a forked kernel and in papermill's own: the same outputs, cell by cell."""

# ruff: noqa: E501

import json
import re
import subprocess
import sys
from pathlib import Path

import papermill
import pytest
from papermill.engines import papermill_engines
from step_files import write_notebook

from mlops_nb.notebook.engine import Engine

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux forks kernels; ordinary ones: test_notebook_engine"
)

# one notebook: a list of cells; those that raise are tagged, so that the next one runs
CELLS = {
    "values": ["x = 1", "x", "x + 1;", "None", "In, Out", "_"],
    "counter": ["1", "_1 if '_1' in globals() else 'no'"],
    "prints": [
        "print('a')\nprint('b', end='')",
        "print('größer ✓ 漢字 😀')",
        "print('x' * 200_000)",
        "list(range(2000))",
    ],
    "streams": ["import sys\nprint('o'); print('e', file=sys.stderr)", "import warnings\nwarnings.warn('careful')"],
    "attributes": [
        "(sys.stdout.isatty(), sys.stdout.encoding, sys.stdout.errors, sys.stdout.name, sys.stdout.writable())"
    ],
    "carriage": ["for i in range(3): sys.stdout.write('\\r%d' % i)\nprint()"],
    "logging": ["import logging\nlogging.warning('w')"],
    "redirect": [
        "import io, contextlib\nb = io.StringIO()\nwith contextlib.redirect_stdout(b): print('kept')\nb.getvalue()",
        "%%capture c\nprint('z')",
        "c.stdout",
    ],
    "html": [
        "import pandas as pd\npd.DataFrame({'a': [1, 2]})",
        "from IPython.display import *\ndisplay(HTML('<b>x</b>'), Markdown('# hi')); display({'k': 1})",
        "JSON({'a': 1})",
        "Latex('$x$')",
        "class R:\n    def _repr_mimebundle_(self, **k): return {'text/plain': 'p', 'application/x-y+json': {'a': 1}}\nR()",
    ],
    "repr": [
        "class A:\n    def _repr_html_(self): raise ValueError('h')\nA()",
        "class B:\n    def __repr__(self): raise ValueError('r')\nB()",
    ],
    "plots": [
        "import matplotlib.pyplot as plt\nplt.plot([1, 2, 3]);",
        "figure, axes = plt.subplots(); axes.plot([3, 2, 1])",
        "plt.plot([1]); plt.show(); print('after')",
        "figure",
        "import matplotlib\nmatplotlib.get_backend()",
    ],
    "updates": [
        "h = display('one', display_id=True)",
        "h.update('two')",
        "display('z', display_id='q'); update_display('w', display_id='q')",
        "for i in range(3):\n    clear_output(wait=True); print(i)",
        "print('x'); clear_output(); print('y')",
    ],
    "errors": [
        "print('before')\ndef f(a):\n    return 1 / a\ndef g(): return f(0)\ng()",
        "try:\n    {}['k']\nexcept KeyError as e:\n    raise RuntimeError('w') from e",
        "pd.DataFrame({'a': [1]})['zz']",
        "x = = 1",
        "undefined_name",
    ],
    "input": ["input('? ')", "import getpass\ngetpass.getpass()"],
    "await": [
        "import asyncio\nawait asyncio.sleep(.01)\n'done'",
        "async def work():\n    await asyncio.sleep(.01); return 7\nt = asyncio.create_task(work())",
        "await t",
        "asyncio.get_running_loop().is_running()",
        "asyncio.run(work())",
        "async with asyncio.timeout(1):\n    async with asyncio.TaskGroup() as g: a = g.create_task(asyncio.sleep(.01, 5))\na.result()",
        "async def count():\n    for i in range(2): yield i\nasync for i in count(): print(i)",
        "L = []\nasync def b():\n    for i in range(3): L.append(i); await asyncio.sleep(.001)\nt = asyncio.create_task(b())",
        "await asyncio.sleep(.1); L",
    ],
    "threads": ["import threading\nt = threading.Thread(target=lambda: print('from thread')); t.start(); t.join()"],
    "processes": [
        "import subprocess\nsubprocess.run(['echo', 'hi']).returncode",
        "!echo shell",
        "%%bash\necho b",
        "import os\nos.system('echo sys')",
        "x = !echo kept\nx",
        "os.write(1, b'raw\\n');",
        "import ctypes\nctypes.CDLL(None).puts(b'from C'); ctypes.CDLL(None).fflush(None);",
        "print('via __stdout__', file=sys.__stdout__, flush=True)",
        "pid = os.fork()\nif pid == 0:\n    print('in child'); sys.stdout.flush(); os._exit(0)\nos.waitpid(pid, 0)[1]",
    ],
    "multiprocessing": [
        "import multiprocessing as mp, helper\nwith mp.get_context('spawn').Pool(2) as p: print(p.map(helper.double, [1, 2]))",
        "def triple(x): return x * 3\nwith mp.get_context('fork').Pool(2) as p: print(p.map(triple, [1, 2]))",
        "from joblib import Parallel, delayed\nParallel(n_jobs=2)(delayed(abs)(-i) for i in range(3))",
        "mp.get_start_method(), mp.current_process().name",
    ],
    "identity": [
        "__name__, type(get_ipython()).__name__, hasattr(get_ipython(), 'kernel')",
        "'IPKernelApp' in get_ipython().config, get_ipython().kernel.implementation",
        "import __main__\nhasattr(__main__, '__file__'), sys.argv[0].rsplit('/', 1)[-1]",
        "sys.path.index(''), sys.path[0].endswith('.zip'), os.getcwd().rsplit('/', 1)[-1]",
        "threading.current_thread() is threading.main_thread()",
        "import pickle\nclass C:\n    pass\npickle.loads(pickle.dumps(C())).__class__.__name__, C.__module__",
        "import inspect\ninspect.getsource(triple)",
    ],
    "magics": [
        "%env FOO=1",
        "%who_ls str",
        "%run script.py",
        "z",
        "%load_ext autoreload",
        "%store",
        "%matplotlib inline",
    ],
    "signals": [
        "import signal, time\ndef late(*a): raise TimeoutError('alarm')\nsignal.signal(signal.SIGALRM, late)\n"
        "signal.setitimer(signal.ITIMER_REAL, .1)\ntry: time.sleep(2)\nexcept TimeoutError as e: print(e)",
        "def deep(n): return deep(n + 1)\ntry: deep(0)\nexcept RecursionError as e: print('too deep')",
        "get_ipython().set_next_input('x')",
        "?len",
    ],
    "native threads": [
        "from sklearn.ensemble import HistGradientBoostingClassifier\nfrom sklearn.datasets import load_iris\n"
        "X, y = load_iris(return_X_y=True)\nHistGradientBoostingClassifier(max_iter=5).fit(X, y).score(X, y) > .9",
        "import pyarrow as pa, pyarrow.compute as pc, pyarrow.parquet as pq\nt = pa.table({'a': range(100_000)})\n"
        "pq.write_table(t, 'p.parquet'); pq.read_table('p.parquet').num_rows, pc.sum(t['a']).as_py()",
        "import numpy as np\na = np.ones((300, 300)); (a @ a).sum()",
        "from sklearn.linear_model import LogisticRegression\nLogisticRegression()",
        "import random\nrandom.seed(1); np.random.seed(1)\nrandom.random(), float(np.random.rand())",
    ],
}
SOURCES = [(group, source) for group, sources in CELLS.items() for source in sources]

UNEQUAL = (
    (r"0x[0-9a-f]{6,}", "0x"),
    (r"[^\s\"]{0,200}ipykernel_\d+/\d+\.py", "CELL"),
    (r"sk-container-id-\d+", "sk-id"),
    (r"\x1b\[[0-9;]*m", ""),
    (r"\\u001b\[[0-9;]*m", ""),
    (r"(?s)The above|During handling", "Chained"),
)


def plain(text):
    for pattern, replacement in UNEQUAL:
        text = re.sub(pattern, replacement, text)
    return text


def shown(cell):
    """Outputs of a cell: text of each stream, then all else in order."""
    streams, rest = {}, []
    for output in cell["outputs"]:
        if output["output_type"] == "stream":
            streams[output["name"]] = streams.get(output["name"], "") + "".join(output["text"])
        else:
            rest.append({name: value for name, value in output.items() if name != "metadata"})
    return plain(json.dumps([sorted(streams.items()), rest], sort_keys=True, ensure_ascii=False))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The cells as both kernels executed them, by engine."""
    papermill_engines.register("mlops_nb", Engine)
    found = {}
    for engine in ("nbclient", "mlops_nb"):
        folder = tmp_path_factory.mktemp("fidelity") / "same"
        folder.mkdir()
        (folder / "helper.py").write_text("def double(x):\n    return x * 2\n")
        (folder / "script.py").write_text("z = 5\nprint('script', __name__)\n")
        notebook = write_notebook(folder / "in.ipynb", *(source for _, source in SOURCES))
        options = {"progress_bar": False, "allow_errors": True, "cwd": str(folder)}
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.delenv("PYTEST_CURRENT_TEST")  # ipykernel does not watch file descriptors where it is set
            options |= {} if engine == "nbclient" else {"cwd": None}
            with pytest.raises(papermill.PapermillExecutionError):  # it goes on, and tells at the end
                papermill.execute_notebook(str(notebook), "out.ipynb", engine_name=engine, **options)
        cells = json.loads((folder / "out.ipynb").read_text(encoding="utf-8"))["cells"]
        found[engine] = [cell for cell in cells if cell["cell_type"] == "code"]
    return found


@pytest.mark.parametrize("number", range(len(SOURCES)), ids=[f"{group}-{n}" for n, (group, _) in enumerate(SOURCES)])
def test_outputs_are_those_of_an_ordinary_kernel(both, number):
    ordinary, forked = both["nbclient"][number], both["mlops_nb"][number]
    assert shown(forked) == shown(ordinary)
    assert forked["execution_count"] == ordinary["execution_count"]


def run(tmp_path, *sources, fails=False, **options):
    """Cells through `papermill --engine mlops_nb`; what each printed."""
    papermill_engines.register("mlops_nb", Engine)
    notebook, output = write_notebook(tmp_path / "in.ipynb", *sources), tmp_path / "out.ipynb"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        try:
            papermill.execute_notebook(
                str(notebook), str(output), engine_name="mlops_nb", progress_bar=False, **options
            )
            assert not fails
        except papermill.PapermillExecutionError:
            assert fails
    cells = [cell for cell in json.loads(output.read_text())["cells"] if cell["cell_type"] == "code"]
    return [
        "".join("".join(o.get("text") or o.get("data", {}).get("text/plain", "")) for o in c["outputs"]) for c in cells
    ]


def test_prints_plots_and_subprocesses_keep_their_order(tmp_path):
    source = """
import os, subprocess, sys
from IPython.display import display
for i in range(200):
    print("p", i)
    display(i)
    subprocess.run(["echo", "s", str(i)])
    os.write(1, b"w %d\\n" % i)
    print("e", i, file=sys.stderr)
"""
    (text,) = run(tmp_path, source.replace("range(200)", "range(60)"))
    expected = "".join(f"p {i}\n{i}s {i}\nw {i}\ne {i}\n" for i in range(60))
    assert text == expected


def test_a_subprocess_prints_between_lines_not_within(tmp_path):
    source = """
import subprocess, sys
script = "import os, time\\nfor i in range(300): os.write(1, b'sub ' + b's' * 50 + b'\\\\n'); time.sleep(.001)"
child = subprocess.Popen([sys.executable, "-c", script])
while child.poll() is None:
    print("own", "o" * 50)
"""
    (text,) = run(tmp_path, source)
    lines = set(text.splitlines())
    assert lines == {"own " + "o" * 50, "sub " + "s" * 50}


def test_nothing_leaks_from_one_notebook_to_the_next(tmp_path):
    run(
        tmp_path,
        "import builtins, os, sys, pandas as pd, sklearn\npd.LEAK = builtins.LEAK = os.environ['LEAK'] = '1'",
        "sys.path.append('/leak'); pd.options.display.max_rows = 7; sklearn.set_config(display='text'); os.chdir('/')",
    )
    found = run(
        tmp_path,
        "import builtins, os, sys, pandas as pd, sklearn\n(hasattr(pd, 'LEAK'), hasattr(builtins, 'LEAK'), 'LEAK' in os.environ,"
        " '/leak' in sys.path, pd.options.display.max_rows, sklearn.get_config()['display'], os.getcwd() == '/')",
        "sorted(map(int, os.listdir('/proc/self/fd')))[-1] < 16",
    )
    assert found == ["(False, False, False, False, 60, 'diagram', False)", "True"]


def test_random_state_is_fresh(tmp_path):
    source = "import random, uuid, numpy as np\nprint(random.random(), float(np.random.rand()), uuid.uuid4())"
    first, second = (run(tmp_path, source)[0].split() for _ in range(2))
    assert not set(first) & set(second)


def test_threads_are_those_that_the_notebook_asks_for(tmp_path, monkeypatch):
    run(tmp_path, "import numpy, sklearn.ensemble")
    look = "import numpy, sklearn.ensemble, threadpoolctl\nsorted({i['num_threads'] for i in threadpoolctl.threadpool_info()})"
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "3")
    assert run(tmp_path, look) == ["[3]"]
    assert run(
        tmp_path, f"import os\nos.environ['OMP_NUM_THREADS'] = os.environ['OPENBLAS_NUM_THREADS'] = '1'\n{look}"
    ) == ["[1]"]


def test_two_processes_have_two_hash_seeds(tmp_path):
    notebook = write_notebook(tmp_path / "in.ipynb", "print(hash('a'))")
    command = [sys.executable, "-m", "papermill", "--engine", "mlops_nb", "--no-progress-bar", str(notebook)]
    for name in ("a.ipynb", "b.ipynb"):
        subprocess.run([*command, name], cwd=tmp_path, check=True, capture_output=True, timeout=120)
    texts = [json.loads(Path(tmp_path, name).read_text())["cells"][0]["outputs"] for name in ("a.ipynb", "b.ipynb")]
    assert texts[0] != texts[1]


def test_a_notebook_may_leave_threads_processes_and_exit_handlers(tmp_path):
    run(
        tmp_path,
        "import atexit, threading, time, subprocess\natexit.register(lambda: open('left', 'w').write('x'));",
        "threading.Thread(target=lambda: (time.sleep(.3), open('thread', 'w').write('x'))).start()",
        "subprocess.Popen(['sh', '-c', 'sleep 2; touch orphan']);",
    )
    assert (tmp_path / "left").exists() and (tmp_path / "thread").exists()
    subprocess.run(["sleep", "2.5"], check=True)
    assert not (tmp_path / "orphan").exists()


def test_interrupt_on_timeout_goes_on(tmp_path):
    asleep = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('caught')"
    waiting = "import asyncio\ntry: await asyncio.sleep(60)\nexcept asyncio.CancelledError: print('cancelled')"
    found = run(tmp_path, asleep, waiting, "print('next')", execution_timeout=1, interrupt_on_timeout=True)
    assert found == ["caught\n", "cancelled\n", "next\n"]


def test_a_dead_kernel_leaves_what_it_had_printed(tmp_path):
    found = run(
        tmp_path, "import os\nprint('own', flush=True); os.system('echo child'); os.kill(os.getpid(), 9)", fails=True
    )
    assert found[0].startswith("own\nchild\n")


def test_too_much_output_goes_to_a_file(tmp_path):
    found = run(tmp_path, "import os\nfor i in range(120_000): print('x' * 99)", "print('next')")
    assert found[0].startswith("x" * 99) and found[0].endswith("is in out.cell-1.txt")
    assert (tmp_path / "out.ipynb").stat().st_size < 6_000_000
    kept = found[0].count("x" * 99 + "\n") * 100
    assert kept + (tmp_path / "out.cell-1.txt").stat().st_size == pytest.approx(12_000_000, abs=200)
    assert found[1] == "next\n"


def test_another_language_has_the_kernel_it_names(tmp_path, monkeypatch):
    spec = tmp_path / "share/kernels/odd"
    spec.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (spec / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Odd", "language": "odd"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share"))
    papermill_engines.register("mlops_nb", Engine)
    kernel = {"name": "odd", "display_name": "Odd", "language": "odd"}
    notebook = write_notebook(
        tmp_path / "in.ipynb", "import sys\nprint(sys.argv[0].rsplit('/')[-1])", kernelspec=kernel
    )
    output = str(tmp_path / "out.ipynb")
    papermill.execute_notebook(str(notebook), output, engine_name="mlops_nb", progress_bar=False)
    assert "ipykernel_launcher.py" in Path(output).read_text()
