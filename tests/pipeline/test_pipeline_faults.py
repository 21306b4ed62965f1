"""Random pipelines x misfortunes: after runs that were killed, in whichever of their processes."""

import pytest
from faults import KILLS, bench, run_case

BATCHES = range(4)
CASES = 3  # of each misfortune in a batch


@pytest.fixture(scope="module")
def killed():
    with bench() as one:
        yield one


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("injector", KILLS)
def test_after_a_kill_a_plain_run_ends_as_if_nothing_had_happened(killed, injector, batch):
    for seed in range(batch * CASES, (batch + 1) * CASES):
        run_case(killed, seed, injector)
