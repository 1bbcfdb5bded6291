"""The soak test for a few seconds. ``python -m tests.mount.soak`` runs it longer."""

from pathlib import Path

import pytest

from tests import needs
from tests.mount.soak import MODES, soak


@pytest.mark.parametrize("mode", MODES)
def test_random_reads_are_right_while_stores_fail_and_processes_die(tmp_path: Path, mode: str) -> None:
    needs.fuse()
    report = soak(tmp_path, seconds=3, processes=6, mode=mode, seed=7, kill_seconds=1)
    assert not report.problems, str(report)
    assert report.found["right"] > 0
    assert report.found["wrong"] == 0
    assert report.done["faults"] > 0
