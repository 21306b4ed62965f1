"""Random pipelines x misfortunes: the disk is full, or takes nothing; and what the generator promises."""

import random
import shutil

import pytest
from faults import DISKS, PIPELINE, bench, gives, random_sketch, run_batch
from pipeline_support import Project
from support import memory_disk


@pytest.fixture(scope="module")
def small():
    """A bench whose workspace is a file system of 3 MB."""
    with bench(lambda place: memory_disk(place, "3m")) as one:
        yield one


@pytest.mark.parametrize("batch", range(2))
@pytest.mark.parametrize("injector", DISKS)
def test_after_trouble_with_the_disk_a_plain_run_ends_as_if_nothing_had_happened(small, injector, batch):
    run_batch(small, injector, batch, cases=4)


def test_what_a_sketch_expects_is_what_an_undisturbed_run_gives(tmp_path):
    project = Project(tmp_path / "project")
    for seed in range(3):
        sketch = random_sketch(random.Random(seed))
        shutil.rmtree(project.folder / "nbs", ignore_errors=True)
        sketch.write(project.folder / "nbs/pipelines" / PIPELINE)
        result = project.run()
        assert result.exit_code == 0 and gives(result.document) == sketch.expected()
