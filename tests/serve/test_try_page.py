"""The page at `/` in a real browser: by keyboard, when it goes wrong, in the dark, with a thousand fields."""

import json
import subprocess
import time

import numpy as np
import pandas as pd
import pytest
from access_support import ring_of
from browser import browser
from in_process import running
from serve_support import contents_of, make_project
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from support import debian_program

from mlops_nb import Client
from mlops_nb.core.hashing import sha256_bytes
from mlops_nb.core.settings import load_settings
from mlops_nb.model.schema import describe_inputs
from mlops_nb.registry.releases import Arm, Document, publish, read_release
from mlops_nb.serve.access import access_of
from mlops_nb.serve.predictor import load_model
from mlops_nb.serve.slots import Slot, Slots, Table

LOADED = "document.title.endsWith('try it') && document.querySelector('#curl').textContent"
ANSWERED = "document.querySelector('#predict').ariaBusy !== 'true' && document.querySelector('.prediction')"
REFUSED = "document.querySelector('.error:not(:empty)')"
PYTHON = "document.querySelector('#python').textContent"
UNSAFE = "<img src=x onerror=alert(1)>"
LOW_CONTRAST = """(() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const linear = (part) => (part / 255 <= 0.03928 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4);
  const weights = [0.2126, 0.7152, 0.0722];
  const parts = (colour) => numbers(colour).slice(0, 3).map(linear);
  const light = (colour) => parts(colour).reduce((sum, part, i) => sum + part * weights[i], 0);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor;
      if ((numbers(colour)[3] ?? 1) > 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = node.value || [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!own || !node.checkVisibility() || node.closest(".old")) continue;
    const [high, low] = [getComputedStyle(node).color, ground(node)].map(light).sort((a, b) => b - a);
    const contrast = (high + 0.05) / (low + 0.05);
    if (contrast < 4.5) found.push([node.tagName, node.textContent.slice(0, 30), contrast]);
  }
  return found;
})()"""


@pytest.fixture(scope="module")
def tabs(tmp_path_factory):
    """A browser."""
    with browser(tmp_path_factory.mktemp("browser")) as tab:
        yield tab


@pytest.fixture
def page(tabs):
    """A tab; whatever the test does in it, nothing leaves the service and the browser has no complaint."""
    tab = tabs()
    yield tab
    origin = tab.run("location.origin")
    assert [url for url in tab.requests if not url.startswith((origin, "data:", "about:"))] == []
    assert tab.complaints == []


@pytest.fixture(scope="module")
def address(server):
    return f"http://127.0.0.1:{server.port}/"


def made(folder, name, table, kinds, estimator, task):
    """A released model of any table; the last column is the target."""
    target = table.columns[-1]
    inputs = describe_inputs(table, kinds, target=target, task=task)
    examples = json.loads(table[list(kinds)].head(2).to_json(orient="records"))
    contents = contents_of(estimator.fit(table[list(kinds)], table[target]), inputs, examples)
    files = {path: sha256_bytes(content) for path, content in contents.items()}
    releases = make_project(folder / name) / ".mlops" / "releases"
    publish(releases, Document(name, task, (Arm(1, "5d" * 32, 1.0, "versions/1"),), files, generation=1), contents)
    return load_model(read_release(releases, name))


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A model of a thousand numbers."""
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 1000)).round(3)).add_prefix("sensor_")
    table["yield"] = table.iloc[:, 77] * 10
    kinds = dict.fromkeys(table.columns[:-1], "number")
    return made(tmp_path_factory.mktemp("wide"), "plant", table, kinds, Ridge(), "regression")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A model whose column, categories and classes are written to do harm."""
    words = [UNSAFE, "it's", '"', "plain"] * 10
    table = pd.DataFrame({f"col {UNSAFE}": words, "class": words}, dtype="str")
    kinds = {table.columns[0]: "category"}
    estimator = make_pipeline(OneHotEncoder(sparse_output=False, handle_unknown="ignore"), LogisticRegression())
    return made(tmp_path_factory.mktemp("hostile"), "words", table, kinds, estimator, "multiclass")


def shown_chances(page):
    """Class and probability, as the table shows them."""
    cells = "['th', '.right'].map((part) => row.querySelector(part).textContent)"
    rows = page.run(f"[...document.querySelectorAll('.chances tr')].map((row) => {cells})")
    return {name: float(chance.split()[0]) / 100 for name, chance in rows}


def enter(page, box, text):
    """Write into a box, as somebody who pastes into it, or take an option that was not there."""
    page.run(
        f"(() => {{ const box = {box}, text = {json.dumps(text)};"
        " if (box.options && ![...box.options].some((one) => one.value === text)) box.append(new Option('x', text));"
        " box.value = text; box.dispatchEvent(new Event('input')); box.dispatchEvent(new Event('change')) })()"
    )


def click(page, selector):
    """Click the first element that fits."""
    page.run(f"document.querySelector({json.dumps(selector)}).click()")


def predict(page):
    """Press the button; wait for the answer."""
    click(page, "#predict")
    page.wait(ANSWERED)


def run_python(page):
    """Run the program that the page shows; its names."""
    names: dict = {}
    exec(page.run(PYTHON), names)
    names["client"].close()
    return names


def test_by_keyboard_alone(page, address):
    page.open(address, LOADED)
    page.tab_to("age")
    page.type("44")
    page.tab_to("account balance: missing")
    page.press(" ")
    page.tab_to("with reasons, at most")
    page.press(" ")
    page.tab_to("Predict")
    page.press("Enter")
    page.wait(ANSWERED)
    program = page.run(PYTHON)
    assert '"age": 44' in program and '"account balance": None' in program and "explain=3" in program
    answer = run_python(page)["answer"]
    assert page.text(".prediction") == f"{answer.prediction} with {100 * answer.probability:.1f} %"
    assert shown_chances(page) == pytest.approx(answer.probabilities, abs=0.001)
    told = page.text(".reasons")
    assert [reason.text in told for reason in answer.reasons] == [True] * 3
    page.tab_to("fill in the record of " + page.text("#history td"))
    assert page.focused()["role"] == "button"


def test_a_screen_reader_is_told(page, address):
    page.open(address, LOADED)
    predict(page)
    nodes = [node for node in page.send("Accessibility.getFullAXTree")["nodes"] if not node["ignored"]]
    roles = {node["role"]["value"] for node in nodes}
    assert {"status", "alert", "main", "heading"} <= roles
    acting = ("button", "textbox", "combobox", "checkbox", "spinbutton", "Date", "searchbox", "link")
    assert [one for one in nodes if one["role"]["value"] in acting and not one.get("name", {}).get("value")] == []
    assert "churn version 1" in page.text("#answer") and "champion" in page.text("#answer")


def test_what_does_not_fit_is_said_beside_the_field(page, address):
    page.open(address, LOADED)
    page.tab_to("age")
    page.type("abc")
    asked = len(page.requests)
    page.press("Enter")
    page.wait(REFUSED)
    assert len(page.requests) == asked
    focused = page.focused()
    assert focused["name"] == "age" and "expected a whole number" in focused["description"]
    assert page.run("document.activeElement.getAttribute('aria-invalid')") == "true"
    assert "1 field needs another value" in page.text("#alert")
    page.run("document.activeElement.select()")
    page.type("41")
    assert page.run("document.activeElement.getAttribute('aria-invalid')") is None
    page.press("Enter")
    page.wait(ANSWERED)
    assert page.text("#alert") == ""


def test_the_servers_errors_stand_beside_their_fields(page, address):
    page.open(address, LOADED)
    page.run("document.querySelector('[type=date]').type = 'text'")
    enter(page, "document.querySelectorAll('.value')[4]", "yesterday")
    click(page, "#predict")
    page.wait(REFUSED)
    assert "expected a date in ISO 8601" in page.text(".wrong")
    assert page.text(".wrong label") == "since"
    assert "does not fit" in page.text("#alert") and "422" in page.text("#alert")


@pytest.mark.parametrize(
    ("place", "name", "text", "value"),
    [(0, "age", "1e300", 1e300), (0, "age", "3.5", 3.5), (1, "account balance", "17,9", "17,9")],
)
def test_the_browser_says_what_the_server_would(page, address, server, place, name, text, value):
    page.open(address, LOADED)
    enter(page, f"document.querySelectorAll('.value')[{place}]", text)
    click(page, "#predict")
    page.wait(REFUSED)
    record = {"age": 41, "married": True, "since": "2021-03-01", name: value}
    refused = server.ask("/predict", record).json["errors"]
    assert (
        page.text(".wrong .error").replace("1000000000000000", "1e+15").endswith(f"expected {refused[0]['expected']}")
    )
    assert len(refused) == 1


def test_the_same_call_works_in_a_terminal(page, address):
    debian_program("curl", "curl")  # which the README uses, too
    page.open(address, LOADED)
    predict(page)
    done = subprocess.run(page.text("#curl"), shell=True, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["probabilities"] == pytest.approx(shown_chances(page), abs=0.001)


def test_a_record_from_before_can_be_filled_in_again(page, address):
    page.open(address, LOADED)
    first = page.run(PYTHON)
    predict(page)
    page.run("document.querySelectorAll('#examples button')[1].click()")
    page.wait(f"{PYTHON} !== {json.dumps(first)}")
    click(page, "#history button")
    page.wait(f"{PYTHON} === {json.dumps(first)}")
    page.run("[...document.querySelectorAll('#examples button')].at(-1).click()")
    click(page, "#predict")
    page.wait("document.querySelector('#alert li')")
    assert page.text("#alert").split()[-3:] == ["age", "married", "since"]  # the others may be missing


@pytest.mark.parametrize("dark", [False, True])
def test_colours_can_be_told_apart(page, address, dark):
    page.dark(dark)
    page.open(address, LOADED)
    click(page, "#why")
    predict(page)
    ground = page.run("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") is not dark
    assert page.run(LOW_CONTRAST) == []
    enter(page, "document.querySelector('.value')", "x")
    click(page, "#predict")
    page.wait(REFUSED)
    assert page.run(LOW_CONTRAST) == []


def test_on_a_telephone_nothing_sticks_out(page, address):
    page.size(360, 740)
    page.open(address, LOADED)
    click(page, "#why")
    predict(page)
    assert page.run("document.documentElement.scrollWidth") <= 360


def test_a_thousand_fields_stay_usable(page, wide):
    with running(wide) as address:
        started = time.monotonic()
        page.open(address, LOADED)
        assert time.monotonic() - started < 5
        assert page.run("document.querySelectorAll('.field').length") <= 60
        page.run("document.querySelector('#search').focus()")
        page.type("sensor 77")
        page.wait("document.querySelectorAll('.field').length === 19")
        assert "19 of 1000 fields" in page.text("#fields")
        page.tab_to("sensor 77")
        page.type("2.5")
        enter(page, "document.querySelector('#search')", "")
        predict(page)
        names = run_python(page)
        assert len(names["record"]) == 1000 and names["record"]["sensor_77"] == 2.5
        assert float(page.text(".prediction").replace("−", "-")) == pytest.approx(names["answer"].prediction, rel=1e-4)


def test_whatever_a_category_is_called_it_is_text(page, hostile):
    with running(hostile) as address:
        page.open(address, LOADED)
        predict(page)
        assert page.run("document.querySelectorAll('img').length") == 0
        assert UNSAFE in page.text(".chances") and UNSAFE in page.text("#fields")
        for text in ("it's", '"', "plain; $(id) `id`", UNSAFE):
            enter(page, "document.querySelector('.value')", text)
            page.wait(f"{PYTHON}.includes({json.dumps(json.dumps(text))})")
            done = subprocess.run(page.text("#curl"), shell=True, capture_output=True, text=True, check=True)
            expected = run_python(page)["answer"].probabilities
            assert json.loads(done.stdout)["probabilities"] == pytest.approx(expected)


@pytest.fixture
def doors(tmp_path):
    """Access as a project with keys has it, and a key."""
    project = make_project(tmp_path / "project")
    (project / "settings.ini").write_text("[access]\nmode = on\n[package]\nname = demo\n")
    key, _ = ring_of(project).create("mia", ("predict",))
    return access_of(load_settings(project, {})), key


def test_a_key_stays_in_the_page(page, wide, doors):
    access, key = doors
    with running(wide, access=access) as address:
        page.open(address, "document.activeElement.id === 'key'")
        assert "asks for a key" in page.text("#keybox") and "plant" not in page.text("body")
        page.type("wrong")
        page.press("Enter")
        page.wait("document.querySelector('#keytold').textContent.startsWith('The key')")
        page.run("document.querySelector('#key').select()")
        page.type(key)
        page.press("Enter")
        page.wait(LOADED)
        predict(page)
        page.wait(f"{PYTHON}.includes('MLOPS_NB_KEY')")
        click(page, "#why")
        click(page, "#predict")
        page.wait("document.querySelector('#alert p')")
        assert "explain" in page.text("#alert") and "explain" in page.text("#keybox")  # this key may not
        assert "Bearer $MLOPS_NB_KEY" in page.text("#curl") and 'key="env:MLOPS_NB_KEY"' in page.text("#python")
        kept = "document.cookie + JSON.stringify([localStorage, sessionStorage])"
        assert key not in page.run(f"document.documentElement.outerHTML + {kept}")


def test_what_was_true_can_be_told(page, address, server):
    page.open(address, LOADED)
    predict(page)
    page.tab_to("no")
    page.press("Enter")
    page.wait("document.querySelector('#feedback [role=status]').textContent")
    assert page.text("#feedback [role=status]") == "Noted: it was no."
    name = page.text("#history code")
    assert server.ask("/feedback", {"request_id": name, "label": "no"}).json["status"] == "duplicate"


def test_each_model_of_a_service_has_its_form(page, wide, hostile):
    with running(wide, hostile) as address:
        page.open(address, LOADED)
        assert page.text("#title") == "plant"
        enter(page, "document.querySelector('#models')", "words")
        page.wait(f"{LOADED} && document.querySelector('#title').textContent === 'words'")
        predict(page)
        assert "/models/words/predict" in page.text("#curl") and 'model="words"' in page.text("#python")
        with Client(address, model="words") as client:
            assert client.schema().model == "words"
            answer = client.predict(client.schema().example)
        assert shown_chances(page) == pytest.approx(answer.probabilities, abs=0.001)


def test_a_service_that_is_not_ready_says_so(page):
    with running() as address:
        page.open(address, "document.querySelector('#alert button')")
        assert "not loaded yet" in page.text("#alert")


def test_the_documentation_is_one_link_away(page, address):
    page.open(address, LOADED)
    page.tab_to("API documentation")
    page.press("Enter")
    page.wait("document.querySelector('.opblock')")
    assert page.run("location.pathname") == "/docs"


def test_the_documentation_takes_a_key_too(page, wide, hostile, doors):
    access, key = doors
    with running(wide, hostile, access=access) as address:
        page.open(f"{address}docs?model=words", "document.activeElement.id === 'key'")
        page.type(key)
        page.press("Enter")
        page.wait("document.querySelector('.opblock-post')")
        click(page, ".opblock-post button")
        page.wait("document.querySelector('button.execute')")
        told = "document.querySelector('.live-responses-table tbody td.response-col_status')"
        page.wait(f"{told} || document.querySelector('button.execute').click()")  # it is deaf while it is drawn
        assert page.run(f"{told}.innerText").startswith("200")
        assert "/models/words/predict" in page.text(".request-url")


def test_on_behalf_of_a_user(page, wide):
    seen = []

    def watching(app):
        async def watched(scope, receive, send):
            if scope["type"] == "http" and scope["path"] == "/predict":
                seen.append(dict(scope["headers"])[b"x-user-id"])
            await app(scope, receive, send)

        return watched

    with running(wide, around=watching) as address:
        page.open(address, LOADED)
        click(page, ".submit summary")
        page.run("document.querySelector('#user').focus()")
        page.type("Zoë 17")
        page.press("Enter")
        page.wait(ANSWERED)
        page.wait(f"{PYTHON}.includes('user=')")
        run_python(page)
    assert seen == [b"Zo%C3%AB 17"] * 2  # the page and the client: the same user, so the same arm


def released(model, *arms, shadow=0, segments=None, generation=3):
    """The tables of a service in which one model stands for several versions: numbers and shares, the base first."""
    names = ["champion", "challenger", "other"]

    def slot(number, name, weight):
        return Slot(model.model, number, f"{number}d" * 32, generation, name, weight, model)

    answering = [slot(number, name, weight) for name, (number, weight) in zip(names, arms, strict=False)]
    return Table(answering, [slot(shadow, "shadow", 0.0)] if shadow else [], segments or {})


def test_the_header_tells_of_the_release_that_is_under_way(page, hostile):
    slots = Slots(released(hostile, (1, 0.95), (2, 0.05), shadow=3, segments={"north": "challenger"}))
    with running(slots=slots) as address:
        page.open(address, LOADED)
        told = page.text("#release")
        assert "version 1 (champion) answers 95 %, version 2 (challenger) 5 %." in told
        assert "By segment: north to version 2 (challenger)." in told
        assert "The shadow, version 3, is asked the same and answers nobody." in told
        slots.use(released(hostile, (2, 1.0), generation=4))
        predict(page)
        page.wait("document.querySelector('#release').textContent === 'Version 2.'")


def test_a_stop_is_told_before_anybody_asks_in_vain(page, hostile):
    slots = Slots(released(hostile, (1, 1.0)))
    slots.stop("words", "wrong prices since 14:00")
    with running(slots=slots) as address:
        page.open(address, LOADED)
        assert page.text("#stopped") == "words was stopped and answers nobody: wrong prices since 14:00"
        assert page.run("document.querySelector('#stopped').getAttribute('role')") == "alert"
        slots.stop("words", "")
        predict(page)
        page.wait("document.querySelector('#stopped').hidden")
        slots.stop("words", "again")
        click(page, "#predict")
        page.wait("document.querySelector('#stopped').textContent.endsWith('nobody: again')")


NESTED = """(() => {
  const scrolls = (node) => {
    const style = getComputedStyle(node);
    return (/auto|scroll/.test(style.overflowY) && node.scrollHeight > node.clientHeight + 1)
      || (/auto|scroll/.test(style.overflowX) && node.scrollWidth > node.clientWidth + 1);
  };
  return [...document.querySelectorAll("main *")].filter(scrolls).map((node) => node.id || node.tagName);
})()"""


@pytest.mark.parametrize("width", [390, 800, 1000, 1400])
def test_nothing_scrolls_within_the_page(page, address, width):
    page.size(width, 700)
    page.open(address, LOADED)
    click(page, "#why")
    predict(page)
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.run(NESTED) == []
