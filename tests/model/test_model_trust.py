"""Nothing is loaded that was not listed at packaging, nor what another scikit-learn wrote."""

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

from mlops_nb.core.errors import StorageError, UsageError
from mlops_nb.model.archive import check_types, dump_estimator, load_estimator
from mlops_nb.model.artifact import Model
from mlops_nb.model.environment import check_environment

X, Y = np.arange(20.0).reshape(-1, 1), np.arange(20) > 9


@pytest.fixture(scope="module")
def forest():
    return dump_estimator(RandomForestClassifier(2, random_state=0).fit(X, Y))


def test_what_is_listed_is_loaded(forest):
    assert load_estimator(forest, listed=check_types(forest)).predict(X).shape == (20,)


def test_what_is_not_listed_is_refused_by_name(forest):
    listed = check_types(forest)
    assert listed, "a forest holds types that skops does not trust by itself"
    with pytest.raises(UsageError, match=f"The model holds {listed[0]}.*not on the list"):
        load_estimator(forest, listed=listed[1:])
    assert load_estimator(dump_estimator(LogisticRegression().fit(X, Y)), listed=[]) is not None


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_model_is_a_storage_error(tmp_path, forest, share):
    file = tmp_path / "model.skops"
    Model(RandomForestClassifier(2, random_state=0).fit(X, Y)).write(file)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(StorageError, match="A model's archive cannot be read"):
        Model.read(file)
    with pytest.raises(StorageError, match="A model's archive cannot be read"):
        load_estimator(forest[: int(share * len(forest))])


@pytest.mark.parametrize("wanted", ["0.24.2", "99.0"])
def test_another_minor_version_is_refused_naming_both(wanted):
    import sklearn

    with pytest.raises(UsageError) as told:
        check_environment("churn version 3", {"requirements": {"scikit-learn": wanted}})
    assert wanted in told.value.message and sklearn.__version__ in told.value.message
    assert f"pip install scikit-learn=={wanted}" in told.value.hint
