"""--status reports mounts that were started by a version with the earlier module layout."""

import json
from pathlib import Path

import click
import pytest

from narcore.errors import MountError
from narserve.commands import mountstatus
from narserve.commands.mountstatus import UPGRADE, earlier_holders, show_status, with_upgrade

STATUS: dict[str, object] = {"target": "/mnt/nix", "holder_pid": 10, "worker_pid": 11, "resend": True}


def fake_proc(root: Path, holder: str, worker: str) -> Path:
    for pid, module in ((10, holder), (11, worker)):
        (root / str(pid)).mkdir(parents=True)
        options = json.dumps({"allow_other": False, "target": STATUS["target"]})
        (root / str(pid) / "cmdline").write_bytes(f"/usr/bin/python3\0-m\0{module}\0{options}\0".encode())
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


@pytest.mark.parametrize(
    ("target", "holder", "expected"),
    [
        ("/mnt/nix", "narcore.mount.holder", True),
        ("/mnt/nix", "narmount.daemon.holder", False),
        ("/mnt/nix2", "narcore.mount.holder", False),
        ("/mnt", "narcore.mount.holder", False),
    ],
)
def test_a_silent_mount_of_the_earlier_layout_is_found_by_the_command_line_of_its_holder(
    tmp_path: Path, target: str, holder: str, expected: bool
) -> None:
    silent: dict[str, object] = {"target": target, "dead": False, "error": "it has not answered"}
    proc = fake_proc(tmp_path, holder, "python3")
    assert with_upgrade(silent, proc) == (silent | {"upgrade": UPGRADE} if expected else silent)


def test_only_holders_of_the_target_are_found(tmp_path: Path) -> None:
    proc = fake_proc(tmp_path, "narcore.mount.holder", "narcore.mount.worker")
    assert earlier_holders("/mnt/nix", proc) == [10]
    assert earlier_holders("/mnt", proc) == []


def test_status_of_a_silent_mount_shows_what_to_do_instead_of_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    proc = fake_proc(tmp_path, "narcore.mount.holder", "python3")

    def no_answer(*_: object) -> dict[str, object]:
        raise MountError("it has not answered")

    monkeypatch.setattr(mountstatus, "read_status", no_answer)
    monkeypatch.setattr(mountstatus, "with_upgrade", lambda status: with_upgrade(status, proc))
    with pytest.raises(click.exceptions.Exit):
        show_status(tmp_path, Path("/mnt/nix"), as_json=False)
    assert capfdbinary.readouterr().out.decode() == f"/mnt/nix\n  no answer    {UPGRADE}\n"


@pytest.mark.parametrize("as_json", [False, True])
def test_status_shows_what_to_do_in_text_and_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes], *, as_json: bool
) -> None:
    proc = fake_proc(tmp_path, "narcore.mount.holder", "narcore.mount.worker")
    monkeypatch.setattr(mountstatus, "read_status", lambda *_: STATUS)
    monkeypatch.setattr(mountstatus, "with_upgrade", lambda status: with_upgrade(status, proc))
    show_status(tmp_path, Path("/mnt/nix"), as_json=as_json)
    shown = capfdbinary.readouterr().out.decode()
    assert (json.loads(shown)["upgrade"] if as_json else shown.partition("upgrade")[2].strip()) == UPGRADE
