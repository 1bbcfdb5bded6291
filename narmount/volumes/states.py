"""The volumes of a state directory: ``<directory>/<id>/`` has ``state.json``, and an overlay's directories ``upper`` and ``work``.

A state is written to the disk before its volume is mounted, and removed after the volume is unmounted. So every mounted volume
has a state, even if the process was interrupted.

Names that begin with ``~`` are not ids: ``~locks`` holds the locks, and ``~gone-...`` is a directory that is being removed.
"""

import fcntl
import os
import time
import uuid
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from narcore.errors import MountError
from narmount.volumes.errors import VolumeBusy
from narmount.volumes.request import MODES, Mode
from narmount.volumes.statefiles import read_state, sync_directory, write_state
from narmount.volumes.targets import check_id

# The locks are files that are created on demand and never removed, so no process holds a lock on a file that is gone. The hash of
# an id selects its lock, so ids share locks. There are enough locks that a volume whose mount hangs rarely blocks other volumes.
LOCKS = 4096
LOCK_SECONDS = 20.0  # an operation under a lock takes milliseconds, unless a disk hangs


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume as its state describes it.

    ``target`` is the path where the volume is mounted, or None for a kept volume that is not mounted. ``cache`` is the name of the
    mount that the volume shows, and ``device`` is the device of that mount. Besides root, ``group`` may write to the volume. With
    ``keep``, what is written is kept after a reboot.
    """

    id: str
    target: Path | None
    cache: str
    mode: Mode
    group: int | None
    keep: bool
    device: str
    boot_id: str

    @property
    def source(self) -> str:
        """The source of the volume's overlay in mountinfo."""
        return overlay_source(self.id)

    def has_options_of(self, other: "Volume") -> bool:
        """Return whether both volumes were requested in the same way."""
        return self._options() == other._options()  # noqa: SLF001  the same class

    def _options(self) -> tuple[object, ...]:
        return self.id, self.target, self.cache, self.mode, self.group, self.keep

    @classmethod
    def from_json(cls, volume_id: str, fields: Mapping[str, Any]) -> Self:
        """Make a volume from the result of ``dataclasses.asdict``. Raises ValueError, TypeError, KeyError or VolumeRefused."""
        target, group, mode = fields["target"], fields["group"], fields["mode"]
        if fields["id"] != volume_id:
            raise ValueError("it describes another volume")
        if mode not in MODES or not isinstance(group, int | None):
            raise ValueError("not the state of a volume")
        return cls(
            id=check_id(volume_id),
            target=None if target is None else Path(target),
            cache=str(fields["cache"]),
            mode=mode,
            group=group,
            keep=bool(fields["keep"]),
            device=str(fields["device"]),
            boot_id=str(fields["boot_id"]),
        )


def overlay_source(volume_id: str) -> str:
    return f"nar-serve:{volume_id}"


class States:
    """The states in ``directory``, which is created on demand. Several processes may share it: each volume has a lock."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._locks = directory / "~locks"

    @contextmanager
    def locked(self, volume_id: str) -> Iterator[None]:
        """Lock a volume against other threads and processes. Raises VolumeBusy if locking takes longer than LOCK_SECONDS."""
        self._make_directory()
        path = self._locks / f"{zlib.crc32(volume_id.encode()) % LOCKS:04}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            _lock(fd, volume_id)
            yield
        finally:
            os.close(fd)

    def read(self, volume_id: str) -> Volume | None:
        """Return the state of a volume, or None if it has none.

        Raises MountError if the state can't be read, since the files of the volume may have to be kept.
        """
        path = self._state(volume_id)
        try:
            return read_state(path, partial(Volume.from_json, volume_id))
        except FileNotFoundError:
            return None
        except MountError as error:
            step = f"if nothing in it is needed, unmount the volume and remove {path.parent}"
            raise MountError(f"{error}; {step}") from error

    def write(self, volume: Volume) -> None:
        """Replace the state of a volume. When this returns, the new state is on the disk. After an OSError, the old state stays."""
        path = self._state(volume.id)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_state(path, asdict(volume))
        sync_directory(self.directory)

    def forget(self, volume_id: str) -> Path | None:
        """Move the directory of a volume out of the way, and return its new path, or None if there is none. Raises OSError.

        The caller removes the moved directory, which may take a while.
        """
        gone = self.directory / f"~gone-{uuid.uuid4().hex}"
        try:
            self.home(volume_id).rename(gone)
        except FileNotFoundError:
            return None
        return gone

    def ids(self) -> list[str]:
        """Return all ids, including volumes without a state, whose creation was interrupted."""
        return [name for name in self._names() if not name.startswith("~")]

    def forgotten(self) -> list[Path]:
        """Return the directories that ``forget`` has moved and that are not removed yet."""
        return [self.directory / name for name in self._names() if name.startswith("~gone-")]

    def home(self, volume_id: str) -> Path:
        return self.directory / volume_id

    def upper(self, volume_id: str) -> Path:
        return self.home(volume_id) / "upper"

    def work(self, volume_id: str) -> Path:
        return self.home(volume_id) / "work"

    def _state(self, volume_id: str) -> Path:
        return self.home(volume_id) / "state.json"

    def _names(self) -> list[str]:
        try:
            return sorted(os.listdir(self.directory))
        except FileNotFoundError:
            return []

    def _make_directory(self) -> None:
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._locks.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            step = "choose another --state-dir"
            raise MountError(f"can't create {self.directory}: {error.strerror}; {step}") from error


def _lock(fd: int, volume_id: str) -> None:
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise VolumeBusy(
                    f"another operation on the volume {volume_id} is in progress; try again in a moment"
                ) from None
            time.sleep(0.005)
        else:
            return
