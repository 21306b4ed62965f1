"""Random pipelines x misfortunes: runs that are stopped, that come in twos and fives, whose files change."""

import pytest
from faults import CHANGES, STOPS, bench, run_case

MISFORTUNES = {**STOPS, **CHANGES}
BATCHES = range(3)
CASES = 3  # of each misfortune in a batch


@pytest.fixture(scope="module")
def disturbed():
    with bench() as one:
        yield one


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("injector", MISFORTUNES)
def test_after_a_disturbance_a_plain_run_ends_as_if_nothing_had_happened(disturbed, injector, batch):
    for seed in range(batch * CASES, (batch + 1) * CASES):
        run_case(disturbed, seed, injector)
