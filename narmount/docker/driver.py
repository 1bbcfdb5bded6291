"""Implements the calls of dockerd: creates, mounts, unmounts and removes volumes, and records their users.

The plugin can be killed at any moment, so the order of the steps matters. A volume is mounted before its user is recorded, and its
user is deleted before the volume is unmounted. So an interruption may leave a mount without users, which the next start or the next
call unmounts. It never leaves a recorded user without a mount. All calls can be repeated. If dockerd can't connect, it repeats
the call with the same ID. If a call is interrupted, dockerd repeats it without its body (see ``app``). If dockerd is killed, its
calls are not repeated (see ``users``).
"""

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from narcore.errors import MountError
from narmount.docker.options import mount_id, parse_options, volume_name
from narmount.docker.records import Record, Records
from narmount.docker.users import UNKNOWN, is_gone, is_mounted_elsewhere
from narmount.volumes.errors import NoSuchVolume, VolumeBusy, VolumeConflict, VolumeRefused
from narmount.volumes.request import MODES, VolumeRequest
from narmount.volumes.states import overlay_source
from narmount.volumes.targets import shown

VOLUMES_MAX = 10_000  # the plugin keeps all volumes in memory, and every response to List contains them
MOUNTS_MAX = 10_000  # users of one volume; the kernel also limits the mounts of a machine (fs.mount-max is 100,000)

# How long a call waits for another call for the same volume. Mounting takes milliseconds, unless a mount hangs. dockerd gives up
# after two minutes.
LOCK_SECONDS = 60

log = logging.getLogger("narmount.docker")


class DockerVolumes(Protocol):
    """The methods of ``narmount.volumes.Volumes`` that the driver uses. With ``keep``, what was written to the volume stays."""

    def publish(self, volume_id: str, target: Path, request: VolumeRequest, *, keep: bool) -> None: ...

    def unpublish(self, volume_id: str, target: Path, *, keep: bool) -> None: ...

    def recover(self) -> None: ...


class Driver:
    """The volumes of Docker. ``caches`` are the names of the caches of ``volumes``. Volumes are mounted in ``mountpoints``.

    The methods raise an error of ``narmount.volumes.errors`` for an invalid call, MountError if the kernel refuses to mount, and
    OSError if the disk fails.
    """

    def __init__(self, volumes: DockerVolumes, records: Records, mountpoints: Path, caches: tuple[str, ...]) -> None:
        self._volumes = volumes
        self._records = records
        self._mountpoints = mountpoints
        self._caches = caches
        self._known = {record.name: record for record in records.load()}
        self._locks = _VolumeLocks()

    # --- methods that change something

    def create(self, name: object, options: object) -> None:
        """Create a volume, unless it exists with the same options."""
        name, wanted = volume_name(name), parse_options(options, self._caches)
        with self._locks.locked(name):
            known = self._known.get(name)
            if known is not None and known.options != wanted:
                raise VolumeConflict(
                    f"the volume {name} exists with other options; remove it first: docker volume rm {name}"
                )
            if known is not None:
                return
            if len(self._known) >= VOLUMES_MAX:
                raise VolumeRefused(
                    f"there are {VOLUMES_MAX} volumes, which is the limit; remove some: docker volume prune"
                )
            self._store(Record(name, wanted, created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())))

    def mount(self, name: object, identity: object, caller: str = UNKNOWN) -> Path:
        """Mount a volume for the user with the id ``identity``, and return its path. ``caller`` is the process that asks."""
        name, identity = volume_name(name), mount_id(identity)
        with self._locks.locked(name):
            record = self._record(name)
            options, target = record.options, self._target(record)
            if options.cache not in self._caches:
                step = f"start nar-serve docker-volume with --cache {options.cache}=DIR"
                raise VolumeRefused(
                    f"the volume {name} needs the cache {options.cache}, which is not configured; {step}"
                )
            if identity not in record.users and len(record.users) >= MOUNTS_MAX:
                raise VolumeRefused(
                    f"the volume {name} has {MOUNTS_MAX} users, which is the limit; create another volume"
                )
            self._volumes.publish(record.name, target, options, keep=True)
            try:
                self._set_users(record, {**record.users, identity: caller})
            except OSError:
                if not record.users:
                    self._volumes.unpublish(record.name, target, keep=True)
                raise
            return target

    def unmount(self, name: object, identity: object) -> None:
        """Remove a user of a volume. If it was the last user, unmount the volume. What was written stays."""
        name, identity = volume_name(name), mount_id(identity)
        with self._locks.locked(name):
            record = self._record(name)
            others = {user: process for user, process in record.users.items() if user != identity}
            users = self._living_users(replace(record, users=others))
            self._set_users(record, users)
            if not users:
                self._volumes.unpublish(record.name, self._target(record), keep=True)

    def remove(self, name: object) -> None:
        """Remove a volume and what was written to it. Does nothing if there is no such volume: dockerd may repeat the call.

        dockerd calls this only if it knows no user of the volume. If users are recorded, the plugin was killed before dockerd
        received the response to their mount call. So recorded users are ignored, unless a container sees the volume, for example
        a container of another dockerd.
        """
        name = volume_name(name)
        with self._locks.locked(name):
            record = self._known.get(name)
            if record is None:
                return
            if record.users and self._is_seen(record):
                step = f"find its containers: docker ps -a --filter volume={name}"
                raise VolumeConflict(f"the volume {name} is in use; {step}")
            self._volumes.unpublish(record.name, self._target(record), keep=False)
            self._records.delete(record.name)
            del self._known[record.name]

    def recover(self) -> None:
        """Unmount volumes without users, and keep the mounts of other volumes. Called at the start.

        A failure is logged. It affects only one volume, and is reported again when the volume is mounted.
        """
        self._volumes.recover()
        for record in list(self._known.values()):
            try:
                if not record.users:
                    self._volumes.unpublish(record.name, self._target(record), keep=True)
            except (MountError, OSError) as error:
                log.error("volume %s: %s", record.name, error)

    # --- methods that only read

    def mountpoint(self, name: object) -> str:
        """Return where a volume is mounted, or an empty string if it has no users."""
        return self._shown_mountpoint(self._record(volume_name(name)))

    def describe(self, name: object) -> dict[str, object]:
        """Return what ``docker volume inspect`` shows. Does not access any file system."""
        record = self._record(volume_name(name))
        return {
            "Name": record.name,
            "Mountpoint": self._shown_mountpoint(record),
            "CreatedAt": record.created,
            "Status": self._details(record),
        }

    def all(self) -> list[dict[str, object]]:
        records = sorted(self._known.copy().values(), key=lambda record: record.name)
        return [{"Name": record.name, "Mountpoint": self._shown_mountpoint(record)} for record in records]

    def status(self) -> list[dict[str, object]]:
        """Return the name, the time of creation and the options of each volume, for ``--status``."""
        records = sorted(self._known.copy().values(), key=lambda record: record.name)
        return [{"name": record.name, "created": record.created} | self._details(record) for record in records]

    def published(self) -> Mapping[str, int]:
        """Return the number of mounted volumes by mode."""
        counts: dict[str, int] = dict.fromkeys(MODES, 0)
        for record in self._known.copy().values():
            counts[record.options.mode] += bool(record.users)
        return counts

    def _details(self, record: Record) -> dict[str, object]:
        options = record.options
        details: dict[str, object] = {"cache": options.cache, "mode": options.mode, "users": len(record.users)}
        if options.group is not None:
            details["group"] = options.group
        if options.prefetch:
            details["prefetch"] = list(options.prefetch)
        return details

    def _shown_mountpoint(self, record: Record) -> str:
        return str(self._target(record)) if record.users else ""

    def _target(self, record: Record) -> Path:
        return self._mountpoints / record.name

    def _record(self, name: str) -> Record:
        record = self._known.get(name)
        if record is None:
            raise NoSuchVolume(f"no such volume: {shown(name)}; list the volumes: docker volume ls")
        return record

    def _living_users(self, record: Record) -> Mapping[str, str]:
        """Return the users of a volume, without users that a killed dockerd left behind."""
        is_left_behind = bool(record.users) and all(map(is_gone, record.users.values()))
        if not is_left_behind or self._is_seen(record):  # a container may still run when its dockerd is gone
            return record.users
        log.info(
            "volume %s: the processes that mounted it are gone, and no container uses it; removing its recorded users",
            record.name,
        )
        return {}

    def _is_seen(self, record: Record) -> bool:
        """Return whether a container sees the overlay. Returns False for read-only volumes, which all have the same source."""
        source = overlay_source(record.name)
        return record.options.mode == "overlay" and is_mounted_elsewhere(source, self._target(record))

    def _set_users(self, record: Record, users: Mapping[str, str]) -> None:
        if users != record.users:
            self._store(replace(record, users=users))

    def _store(self, record: Record) -> None:
        self._records.save(record)
        self._known[record.name] = record


class _VolumeLocks:
    """One lock for each volume, so that calls for different volumes don't wait for each other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # each lock with the number of threads that hold it or wait for it
        self._locks: dict[str, tuple[threading.Lock, int]] = {}

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Lock a volume. Raises VolumeBusy after LOCK_SECONDS."""
        with self._lock:
            lock, users = self._locks.get(name, (threading.Lock(), 0))
            self._locks[name] = lock, users + 1
        try:
            if not lock.acquire(timeout=LOCK_SECONDS):
                step = "check that its cache answers: nar-serve docker-volume --status"
                raise VolumeBusy(f"another call for the volume {name} has been running for a minute; {step}")
            try:
                yield
            finally:
                lock.release()
        finally:
            with self._lock:
                lock, users = self._locks.pop(name)
                if users > 1:
                    self._locks[name] = lock, users - 1
