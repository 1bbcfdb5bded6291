"""Which volumes there are: ``<directory>/<id>/`` with ``state.json``, and ``upper`` and ``work`` of an overlay.

A state is on the disk before its volume is mounted, and goes after it was unmounted: whatever is interrupted, what is mounted has
a state. It is replaced as a whole, by rename(2).

Names that begin with ``~`` are no ids: ``~locks`` has the locks, ``~gone-...`` is what is being removed.
"""

import fcntl
import json
import os
import time
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Self

from narcore.errors import MountError
from narmount.volumes.errors import VolumeBusy, VolumeRefused
from narmount.volumes.targets import check_id

Mode = Literal["ro", "overlay"]
MODES: tuple[Mode, ...] = ("ro", "overlay")

# Files, made when they are needed, and never removed: so nobody holds one that is no longer there. Ids share them, but so few that
# those whose mounts hang don't hold up others.
LOCKS = 4096
LOCK_SECONDS = 20.0  # what is done under a lock takes milliseconds, unless a disk hangs
STATE_MAX = 64 * 1024

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Volume:
    """``target`` is where it is mounted, or None for one that is kept, but not mounted. ``cache`` is the name of the mount that
    it shows, ``device`` the device of that. ``group``: who may write besides root. ``keep``: what is written outlives a reboot.
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
        """What mountinfo gives as the source of its overlay."""
        return overlay_source(self.id)

    def is_as(self, other: "Volume") -> bool:
        """Whether it was asked for in the same way."""
        return self._asked() == other._asked()

    def _asked(self) -> tuple[object, ...]:
        return self.id, self.target, self.cache, self.mode, self.group, self.keep

    def to_json(self) -> str:
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Raises ValueError, TypeError or KeyError for what ``to_json`` did not write."""
        fields = json.loads(text)
        target, group, mode = fields["target"], fields["group"], fields["mode"]
        if mode not in MODES or not isinstance(group, int | None):
            raise ValueError("not the state of a volume")
        return cls(
            id=check_id(fields["id"]),
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


def current_boot_id() -> str:
    return _BOOT_ID.read_text().strip()


class States:
    """Those in ``directory``, which is made when it is first needed. Of several processes one at a time has a volume's lock."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._locks = directory / "~locks"

    @contextmanager
    def locked(self, volume_id: str) -> Iterator[None]:
        """Nobody else, in this process or another, does something with that volume. Raises VolumeBusy if that takes long."""
        self._make_directory()
        path = self._locks / f"{zlib.crc32(volume_id.encode()) % LOCKS:04}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            _lock(fd, volume_id)
            yield
        finally:
            os.close(fd)

    def read(self, volume_id: str) -> Volume | None:
        """None if there is none. Raises MountError if its state can't be read: it may be one to keep."""
        path = self._state(volume_id)
        try:
            with path.open("rb") as file:
                volume = Volume.from_json(file.read(STATE_MAX))
            if volume.id != volume_id:
                raise ValueError("it is of another volume")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, RecursionError, VolumeRefused) as error:
            step = f"if nothing in it is needed, unmount the volume and remove {path.parent}"
            raise MountError(f"{path} can't be read ({error}); {step}") from error
        return volume

    def write(self, volume: Volume) -> None:
        """On the disk when it returns. Raises OSError; then the old one is still there."""
        path = self._state(volume.id)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        part = path.with_suffix(".part")
        with part.open("w", encoding="utf-8") as file:
            file.write(volume.to_json())
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        _sync(path.parent)
        _sync(self.directory)

    def forget(self, volume_id: str) -> Path | None:
        """Take its directory out of the way at once; gives what is then to be removed, which may take a while. Raises OSError."""
        gone = self.directory / f"~gone-{uuid.uuid4().hex}"
        try:
            self.home(volume_id).rename(gone)
        except FileNotFoundError:
            return None
        return gone

    def ids(self) -> list[str]:
        """Also of those without a state, whose making was interrupted."""
        return [name for name in self._names() if not name.startswith("~")]

    def forgotten(self) -> list[Path]:
        """What was to be removed then, and is still there."""
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
            step = "name another directory for the state of volumes"
            raise MountError(f"{self.directory} can't be made: {error.strerror}; {step}") from error


def _lock(fd: int, volume_id: str) -> None:
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise VolumeBusy(f"something else is done with the volume {volume_id}; try again in a moment") from None
            time.sleep(0.005)
        else:
            return


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
