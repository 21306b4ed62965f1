"""Random pipelines x misfortunes: runs that are stopped, that come in twos and fives, whose files change."""

import pytest
from faults import CHANGES, STOPS, run_batch


@pytest.mark.parametrize("batch", range(3))
@pytest.mark.parametrize("injector", {**STOPS, **CHANGES})
def test_after_a_disturbance_a_plain_run_ends_as_if_nothing_had_happened(fault_bench, injector, batch):
    run_batch(fault_bench, injector, batch)
