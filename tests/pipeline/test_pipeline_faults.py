"""Random pipelines x misfortunes: after runs that were killed, in whichever of their processes."""

import pytest
from faults import KILLS, run_batch


@pytest.mark.parametrize("batch", range(4))
@pytest.mark.parametrize("injector", KILLS)
def test_after_a_kill_a_plain_run_ends_as_if_nothing_had_happened(fault_bench, injector, batch):
    run_batch(fault_bench, injector, batch)
