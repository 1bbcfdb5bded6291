"""State files: replaced as a whole, checked when they are read, and readable across versions."""

import json
from pathlib import Path

import pytest

from narcore.errors import MountError
from narmount.docker.records import Record, Records
from narmount.volumes.request import VolumeRequest
from narmount.volumes.statefiles import read_state, write_state
from narmount.volumes.states import States, Volume

HELLO = f"{'0' * 32}-hello"

# The text that the previous version wrote.
EARLIER_RECORD = (
    f'{{"name": "v", "options": {{"cache": "main", "mode": "overlay", "group": 100, "prefetch": ["{HELLO}"]}}, '
    '"created": "2026-11-01T10:00:00Z", "boot_id": "boot-1", "users": {"mount-1": "17:4711"}}'
)
EARLIER_STATE = (
    '{"id": "v", "target": "/srv/t", "cache": "main", "mode": "overlay", "group": 100, "keep": true, '
    '"device": "0:42", "boot_id": "boot-1"}'
)
EARLIER_UNMOUNTED_STATE = EARLIER_STATE.replace('"/srv/t"', "null").replace("100", "null")


def test_a_docker_record_of_the_earlier_version_is_read(tmp_path: Path) -> None:
    (tmp_path / "v.json").write_text(EARLIER_RECORD)
    record = Record(
        "v", VolumeRequest("main", "overlay", 100, (HELLO,)), "2026-11-01T10:00:00Z", {"mount-1": "17:4711"}
    )
    assert list(Records(tmp_path, "boot-1").load()) == [record]


@pytest.mark.parametrize(
    ("text", "target", "group"), [(EARLIER_STATE, Path("/srv/t"), 100), (EARLIER_UNMOUNTED_STATE, None, None)]
)
def test_a_volume_state_of_the_earlier_version_is_read(
    tmp_path: Path, text: str, target: Path | None, group: int | None
) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v/state.json").write_text(text)
    assert States(tmp_path).read("v") == Volume("v", target, "main", "overlay", group, True, "0:42", "boot-1")


def test_the_earlier_version_can_read_what_is_written(tmp_path: Path) -> None:
    """A downgrade keeps its volumes."""
    Records(tmp_path, "boot-1").save(
        Record("v", VolumeRequest("main", "overlay", 100, (HELLO,)), "2026-11-01T10:00:00Z", {"mount-1": "17:4711"})
    )
    States(tmp_path).write(Volume("v", Path("/srv/t"), "main", "overlay", 100, True, "0:42", "boot-1"))
    assert json.loads((tmp_path / "v.json").read_text()) == json.loads(EARLIER_RECORD)
    assert json.loads((tmp_path / "v/state.json").read_text()) == json.loads(EARLIER_STATE)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    write_state(path, {"value": 1})

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_state(path, {"value": 2})
    assert read_state(path, dict) == {"value": 1}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"null", b"[" * 100_000], ids=repr)
def test_an_invalid_file_is_reported_with_its_path(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(content)
    with pytest.raises(MountError, match=r"/state\.json can't be read"):
        read_state(path, lambda fields: fields["value"])


def test_a_missing_file_is_not_an_invalid_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_state(tmp_path / "state.json", dict)
