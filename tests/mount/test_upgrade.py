"""A mount that runs through an upgrade from the earlier module layout is reported by --status."""

import json
from pathlib import Path

import pytest

from narserve.commands import mountstatus
from narserve.commands.mountstatus import UPGRADE, show_status, with_upgrade

STATUS: dict[str, object] = {"target": "/mnt/nix", "holder_pid": 10, "worker_pid": 11, "resend": True}


def fake_proc(root: Path, holder: str, worker: str) -> Path:
    for pid, module in ((10, holder), (11, worker)):
        (root / str(pid)).mkdir(parents=True)
        (root / str(pid) / "cmdline").write_bytes(f"/usr/bin/python3\0-m\0{module}\0{{}}\0".encode())
    return root


@pytest.mark.parametrize(
    ("holder", "worker"),
    [
        ("narcore.mount.holder", "narcore.mount.worker"),
        ("narcore.mount.holder", "narmount.daemon.worker"),
        ("narmount.daemon.holder", "narcore.mount.worker"),
    ],
)
def test_a_mount_of_the_earlier_layout_is_reported(tmp_path: Path, holder: str, worker: str) -> None:
    assert with_upgrade(STATUS, fake_proc(tmp_path, holder, worker)) == {**STATUS, "upgrade": UPGRADE}


def test_a_mount_of_this_layout_is_not_reported(tmp_path: Path) -> None:
    assert with_upgrade(STATUS, fake_proc(tmp_path, "narmount.daemon.holder", "narmount.daemon.worker")) == STATUS


def test_processes_that_have_ended_are_not_reported(tmp_path: Path) -> None:
    assert with_upgrade(STATUS, tmp_path) == STATUS


@pytest.mark.parametrize("as_json", [False, True])
def test_status_shows_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes], *, as_json: bool
) -> None:
    proc = fake_proc(tmp_path, "narcore.mount.holder", "narcore.mount.worker")
    monkeypatch.setattr(mountstatus, "read_status", lambda *_: STATUS)
    monkeypatch.setattr(mountstatus, "with_upgrade", lambda status: with_upgrade(status, proc))
    show_status(tmp_path, Path("/mnt/nix"), as_json=as_json)
    shown = capfdbinary.readouterr().out.decode()
    assert (json.loads(shown)["upgrade"] if as_json else shown.partition("upgrade")[2].strip()) == UPGRADE
