"""The volumes of Docker and the mounts that dockerd has asked for, one file per volume. The records are still
valid after a restart of the plugin.

The users in a record are valid only until the next boot, since a reboot ends all mounts.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from narcore.errors import MountError
from narmount.docker.options import mount_id, volume_name
from narmount.volumes.request import VolumeRequest
from narmount.volumes.statefiles import PART, current_boot_id, read_state, sync_directory, write_state

log = logging.getLogger("narmount.docker")


@dataclass(frozen=True, slots=True)
class Record:
    """A volume of Docker.

    ``created`` is a time as Docker shows it (RFC 3339). ``users`` maps the ids of mounts to the processes that asked for them: see
    ``narmount.docker.users``.
    """

    name: str
    options: VolumeRequest
    created: str
    users: Mapping[str, str] = field(default_factory=dict)


class Records:
    """The records in ``directory``, which is created. Only one process may use the directory: see ``narmount.docker.service``."""

    def __init__(self, directory: Path, boot_id: str | None = None) -> None:
        self._directory = directory
        self._boot_id = boot_id or current_boot_id()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def load(self) -> Iterator[Record]:
        """Read all records. A record that can't be read is logged and left in place, so that the other volumes work."""
        for path in sorted(self._directory.iterdir()):
            if path.suffix == PART:
                path.unlink()
                continue
            try:
                yield read_state(path, partial(self._record, path.stem))
            except MountError as error:
                log.error("%s; its volume is not available", error)

    def _record(self, name: str, fields: Mapping[str, Any]) -> Record:
        if volume_name(fields["name"]) != name:
            raise ValueError("it describes another volume")
        users = fields["users"].items() if fields["boot_id"] == self._boot_id else ()
        return Record(
            name,
            VolumeRequest.from_json(fields["options"]),
            str(fields["created"]),
            {mount_id(identity): str(process) for identity, process in users},
        )

    def save(self, record: Record) -> None:
        """Replace the record of a volume. When this returns, the new record is on the disk. After an OSError, the old one stays."""
        write_state(self._path(record.name), asdict(record) | {"boot_id": self._boot_id})

    def delete(self, name: str) -> None:
        """Delete a record if it exists. Raises OSError."""
        self._path(name).unlink(missing_ok=True)
        sync_directory(self._directory)

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}.json"
