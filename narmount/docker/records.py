"""Which volumes there are, and which mounts dockerd has asked for: a file each, so that a restart forgets nothing.

A record is replaced as a whole: after kill -9, or a power cut, it is the old one or the new one. The mounts in it only count
until the machine is started again, since none of them outlives that.
"""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from narmount.docker.options import Refused, VolumeOptions, mount_id, volume_name

RECORD_MAX = 4 << 20  # one with the most mounts, and the longest ids, takes 2.6 MB

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

log = logging.getLogger("narmount.docker")


@dataclass(frozen=True, slots=True)
class Record:
    """``created`` is as Docker shows it: RFC 3339. ``users`` has the ids of mounts, and who asked for each: see ``users``."""

    name: str
    options: VolumeOptions
    created: str
    users: Mapping[str, str] = field(default_factory=dict)


class Records:
    """Those in ``directory``, which is made. One process at a time: see ``narmount.docker.service``."""

    def __init__(self, directory: Path, boot_id: str | None = None) -> None:
        self._directory = directory
        self._boot_id = boot_id or _BOOT_ID.read_text().strip()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def load(self) -> Iterator[Record]:
        """All of them. One that can't be read is logged and left where it is: the other volumes have to go on."""
        for path in sorted(self._directory.iterdir()):
            if path.suffix == ".part":  # a new one that was not finished
                path.unlink()
                continue
            try:
                yield self._read(path)
            except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, Refused) as error:
                log.error("%s can't be read, so there is no such volume: %s", path, error)

    def _read(self, path: Path) -> Record:
        with path.open("rb") as file:
            fields = json.loads(file.read(RECORD_MAX))
        if volume_name(fields["name"]) != path.stem:
            raise ValueError("it is of another volume")
        record = Record(path.stem, VolumeOptions.from_json(fields["options"]), str(fields["created"]))
        if fields["boot_id"] != self._boot_id:
            return record
        return replace(record, users={mount_id(name): str(asker) for name, asker in fields["users"].items()})

    def save(self, record: Record) -> None:
        """On the disk when it returns. Raises OSError; then the old one is still there."""
        fields = {
            "name": record.name,
            "options": record.options.to_json(),
            "created": record.created,
            "boot_id": self._boot_id,
            "users": dict(record.users),
        }
        path = self._path(record.name)
        part = path.with_suffix(".part")
        with part.open("w", encoding="utf-8") as file:
            json.dump(fields, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        self._sync_directory()

    def delete(self, name: str) -> None:
        """Also if there is none. Raises OSError."""
        self._path(name).unlink(missing_ok=True)
        self._sync_directory()

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}.json"

    def _sync_directory(self) -> None:
        with _opened(self._directory) as directory:
            os.fsync(directory)


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
