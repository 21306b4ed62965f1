"""Pickles: what is looked at, what is refused, and that nothing runs before."""

import os
import pickle

import joblib
import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mlops_nb.core.errors import StorageError, UsageError
from mlops_nb.model.pickles import is_needed, read_pickle, scan

X = np.random.default_rng(0).normal(size=(60, 3))
Y = np.where(X[:, 0] > 0, "yes", "no")
MODELS = {
    "logistic": make_pipeline(StandardScaler(), LogisticRegression()),
    "forest": RandomForestClassifier(3, random_state=0),
    "boosting": HistGradientBoostingClassifier(max_iter=3),
}
RAN = "MLOPS_NB_TEST_RAN"


class Call:
    """An object that is read by calling a function."""

    def __init__(self, function, *words):
        self.how = function, words

    def __reduce__(self):
        return self.how


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return MODELS[request.param].fit(X, Y)


@pytest.mark.parametrize("protocol", range(6))
def test_models_pass(model, tmp_path, protocol):
    file = tmp_path / "model.pkl"
    file.write_bytes(pickle.dumps(model, protocol))
    read, found = read_pickle(file, allowed=True)
    assert found.complete
    np.testing.assert_array_equal(read.predict(X), model.predict(X))


@pytest.mark.parametrize("compress", [0, 3])
def test_joblib_files_pass(model, tmp_path, compress):
    file = tmp_path / "model.joblib"
    joblib.dump(model, file, compress=compress)
    np.testing.assert_array_equal(read_pickle(file, allowed=True)[0].predict(X), model.predict(X))


HARM = {
    "os.system": Call(os.system, f"export {RAN}=1"),
    "eval": Call(eval, f"__import__('os').environ.update({RAN}='1')"),
    "numpy's own": Call(np.testing.measure, f"__import__('os').environ.update({RAN}='1')", 1),
    "pandas' own": Call(__import__("pandas").eval, "1 + 1"),
    "getattr": Call(getattr, os, "environ"),
}


@pytest.mark.parametrize("what", HARM)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_what_no_model_needs_is_refused_and_does_not_run(tmp_path, what, protocol):
    file = tmp_path / "model.pkl"
    try:
        file.write_bytes(pickle.dumps([HARM[what]], protocol))
    except TypeError:
        pytest.skip("a module cannot be pickled")
    with pytest.raises(UsageError, match="which no model of sklearn, numpy, scipy needs") as told:
        read_pickle(file, allowed=True)
    assert "advisory" in told.value.hint
    assert RAN not in os.environ


def test_what_leads_the_scan_astray_is_refused_while_it_is_read(tmp_path):
    """Compressed by joblib the scan sees nothing; the name is refused when it is asked for."""
    file = tmp_path / "model.joblib"
    joblib.dump(HARM["eval"], file, compress=3)
    assert not scan(file.read_bytes()).complete
    with pytest.raises(UsageError, match=r"imports builtins\.eval"):
        read_pickle(file, allowed=True)
    assert RAN not in os.environ


def test_a_name_put_together_on_the_stack_is_told_or_unknown(tmp_path):
    """`os` and `system` are pushed, then two harmless texts that are taken away again."""
    texts = [b"\x8c" + bytes([len(word)]) + word for word in (b"os", b"system", b"sklearn.base", b"clone")]
    trick = b"\x80\x04" + texts[0] + texts[1] + texts[2] + b"0" + texts[3] + b"0" + b"\x93."
    assert scan(trick).imports == ["?"]
    (tmp_path / "model.pkl").write_bytes(trick)
    with pytest.raises(UsageError, match=r"imports \?"):
        read_pickle(tmp_path / "model.pkl", allowed=True)


@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"hello", pickle.dumps(MODELS["forest"])[:-40]])
def test_what_is_cut_off_is_refused_in_words(tmp_path, content):
    (tmp_path / "model.pkl").write_bytes(content)
    with pytest.raises(StorageError, match=r"model\.pkl cannot be read"):
        read_pickle(tmp_path / "model.pkl", allowed=True)


def test_without_consent_not_a_byte_is_looked_at(tmp_path):
    with pytest.raises(UsageError, match="reading it runs whatever its maker wrote") as told:
        read_pickle(tmp_path / "absent.pkl", allowed=False)
    assert "[registry] allow_pickle = true" in told.value.hint


def test_what_cannot_predict_is_no_model(tmp_path):
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UsageError, match="holds a dict, which cannot predict"):
        read_pickle(tmp_path / "model.pkl", allowed=True)


def test_functions_of_trusted_libraries_are_not_needed():
    for name in ("numpy.testing.measure", "sklearn.base.clone", "numpy.load", "builtins.eval", "os.system", "?"):
        assert not is_needed(name)
