"""A file that is not there is refused before anything runs, with the nearest that is."""

import pytest

from mlops_nb.core.errors import UsageError
from mlops_nb.notebook.parameters import Parameter
from mlops_nb.pipeline.distributions import Distributions
from mlops_nb.pipeline.inputs import input_of
from mlops_nb.pipeline.statcache import StatCache

SOURCE = Parameter("source", "str", "a.csv", kind="source", step="ingest")


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("data/custmers.csv", "Did you mean 'customers.csv'?"),
        ("data/zzz.parquet", "Give the path of a file that exists: -p ingest.source=PATH."),
        ("dat/customers.csv", "There is no folder 'dat' either: check the path."),
    ],
)
def test_a_missing_file(tmp_path, value, hint):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "customers.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match="there is no file") as caught:
        input_of(SOURCE, value, tmp_path, StatCache(tmp_path / "cache.json"), Distributions())
    assert caught.value.hint == hint
