"""The soak test for a few seconds. ``python -m tests.mount.soak`` runs it longer."""

import tempfile
from pathlib import Path

import pytest

from tests import needs
from tests.mount.soak import MODES, soak


@pytest.mark.parametrize("mode", MODES)
def test_random_reads_are_right_while_stores_fail_and_processes_die(mode: str) -> None:
    needs.fuse()
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:  # tmp_path of pytest-xdist is too long for a socket
        report = soak(Path(directory), seconds=5, processes=8, mode=mode, seed=7, kill_seconds=2)
    assert not report.problems, str(report)
    assert report.found["right"] > 0
    assert report.found["wrong"] == 0
    assert report.done["faults"] > 0
