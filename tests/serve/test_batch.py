"""`mlops-nb predict`: whole tables, the answers of the service, and nothing lost or doubled after kill -9."""

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from sklearn.datasets import load_breast_cancer

from mlops_nb.core.ledger import Ledger
from mlops_nb.core.settings import load_settings
from mlops_nb.serve.batch import open_version

MODEL = "breast-cancer-diagnosis"


@pytest.fixture(scope="module")
def rows():
    table = load_breast_cancer(as_frame=True).data
    return table.assign(patient=[f"P{number:04}" for number in range(len(table))])


@pytest.fixture
def project(default_run):
    return default_run[0]


@pytest.fixture(scope="module")
def patients(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("patients") / "patients.parquet"
    rows.to_parquet(path, row_group_size=90)
    return path


@pytest.fixture(scope="module")
def undisturbed(default_run, patients, tmp_path_factory):
    """The output of a job that nobody disturbs."""
    output = tmp_path_factory.mktemp("undisturbed") / "out.parquet"
    words = ("predict", MODEL, str(patients), "-o", str(output), "--keep", "patient", "--rows", "100")
    document = default_run[0].json(*words)
    assert (document["rows"], document["resumed"], document["version"]) == (569, 0, 1)
    return output


def test_duckdb_reads_the_answers_of_the_service(project, rows, undisturbed):
    found = duckdb.sql(f"SELECT * FROM '{undisturbed}'").df()
    assert list(found.columns) == ["patient", "prediction", "probability_benign", "probability_malignant"]
    assert found["patient"].tolist() == rows["patient"].tolist()
    settings = load_settings(project.folder, project.environment)
    with Ledger.open(settings, create=False) as ledger:
        model = open_version(settings, ledger, f"{MODEL}:champion")
    names = {name.strip(): name for name in rows.columns}
    records = rows[[names[name] for name in model.inputs.names]].head(50).to_json(orient="records", double_precision=15)
    asked = model.predict(model.reader.read(records.encode()))
    assert [answer["prediction"] for answer in asked] == found["prediction"].head(50).tolist()
    chances = [answer["probabilities"]["malignant"] for answer in asked]
    np.testing.assert_allclose(found["probability_malignant"].head(50), chances, rtol=1e-9)
    about = pq.read_metadata(undisturbed).metadata[b"mlops_nb"]
    assert b'"version":1' in about and b'"table":"patients.parquet"' in about


@pytest.mark.parametrize("point", ["after-piece:1", "after-piece:6", "after-merge", "before-output", "after-output"])
def test_killed_at(point, project, patients, undisturbed, tmp_path):
    words = ("predict", MODEL, str(patients), "-o", str(tmp_path / "out.parquet"), "--keep", "patient", "--rows", "100")
    assert project.call("mlops-nb", *words, MLOPS_NB_FAULT=point).returncode == -9
    assert (tmp_path / "out.parquet").exists() == (point == "after-output")
    document = project.json(*words)
    assert document["rows"] == 569 and document["resumed"] == {"after-piece:1": 100}.get(point, 569)
    assert (tmp_path / "out.parquet").read_bytes() == undisturbed.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]


def test_a_csv_gives_the_same_and_csv_comes_out(project, rows, undisturbed, tmp_path):
    rows.to_csv(tmp_path / "patients.csv.gz", index=False, sep=";")
    words = ("predict", f"{MODEL}:1", str(tmp_path / "patients.csv.gz"), "-o", str(tmp_path / "out.csv"))
    assert project.json(*words, "--keep", "patient")["rows"] == 569
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out.csv"), pd.read_parquet(undisturbed).astype({}))


def test_what_cannot_be_predicted_is_refused_in_words(project, rows, patients, tmp_path):
    output = tmp_path / "out.parquet"

    def said(model, table, *words):
        return project.json("predict", model, str(table), "-o", str(output), *words, expect=2)["error"]["message"]

    assert "There is no model 'breast'" in said("breast", patients)
    assert "There is no table" in said(MODEL, tmp_path / "none.parquet")
    assert "has no column 'patent'" in said(MODEL, patients, "--keep", "patent")
    rows.drop(columns="mean area").to_parquet(tmp_path / "less.parquet")
    assert "has no column 'mean area', which is an input of the model" in said(MODEL, tmp_path / "less.parquet")
    rows.head(30).astype({"mean area": str}).replace({"mean area": {"1001.0": "wide"}}).to_csv(
        tmp_path / "odd.csv", index=False
    )
    assert "Row 1: 'mean area' is 'wide', expected a number" in said(MODEL, tmp_path / "odd.csv")
    rows.head(0).to_parquet(tmp_path / "none.parquet")
    assert "none.parquet has no rows" in said(MODEL, tmp_path / "none.parquet", "--overwrite")
    (tmp_path / "broken.parquet").write_bytes(patients.read_bytes()[:-100])
    assert "broken.parquet cannot be read" in said(MODEL, tmp_path / "broken.parquet")
    assert not list(tmp_path.glob("out.parquet*")), "nothing is left that the mended table would meet"


def test_pieces_of_another_job_and_older_outputs_stay_until_they_may_go(project, patients, tmp_path):
    output = str(tmp_path / "out.parquet")
    words = ("predict", MODEL, str(patients), "-o", output)
    assert project.call("mlops-nb", *words, "--rows", "100", MLOPS_NB_FAULT="after-piece:2").returncode == -9
    refused = project.json(*words, "--rows", "200", expect=2)["error"]["message"]
    assert "holds pieces of another job: rows 100 and not 200" in refused
    assert project.json(*words, "--rows", "200", "--overwrite")["resumed"] == 0
    assert "is there already" in project.json(*words, expect=2)["error"]["message"]
    assert project.json(*words, "--overwrite")["rows"] == 569
