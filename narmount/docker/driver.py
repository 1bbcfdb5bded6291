"""What the calls of dockerd do: volumes that are made, mounted for who uses them, counted, and removed.

The order of steps is what survives kill -9 at any moment. A mount is made before it is counted, and no longer counted before it is
unmounted: what is left behind by an interruption is a mount that nobody counts, which the next start (or the next call)
takes away, and never a count that nobody takes back. dockerd repeats a call that it could not make, with the same ID, so all of
them can be repeated. One that broke off it does not repeat (see ``app``), and none when it was killed itself: see ``users``.
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

VOLUMES_MAX = 10_000  # all of them are in memory, and in every answer to List
MOUNTS_MAX = 10_000  # of one volume; more than a kernel lets a machine mount is no use (fs.mount-max is 100,000)

# A mount takes milliseconds, unless what it is made of does not answer. dockerd itself gives a call up after two minutes.
TURN_SECONDS = 60

log = logging.getLogger("narmount.docker")


class DockerVolumes(Protocol):
    """What is taken of ``narmount.volumes.Volumes``. ``keep``: what was written, until the volume is published again."""

    def publish(self, volume_id: str, target: Path, request: VolumeRequest, *, keep: bool) -> None: ...

    def unpublish(self, volume_id: str, target: Path, *, keep: bool) -> None: ...

    def recover(self) -> None: ...


class Driver:
    """``caches`` are the names of those that ``volumes`` has; ``mountpoints`` is where volumes are mounted.

    The methods raise an error of ``narmount.volumes.errors`` for an invalid call, MountError if the kernel refuses to mount, and
    OSError if the disk fails.
    """

    def __init__(self, volumes: DockerVolumes, records: Records, mountpoints: Path, caches: tuple[str, ...]) -> None:
        self._volumes = volumes
        self._records = records
        self._mountpoints = mountpoints
        self._caches = caches
        self._known = {record.name: record for record in records.load()}
        self._turns = _Turns()

    # --- what changes something

    def create(self, name: object, given: object) -> None:
        """Of the same name and options there may be one."""
        name, options = volume_name(name), parse_options(given, self._caches)
        with self._turns.take(name):
            known = self._known.get(name)
            if known is not None and known.options != options:
                raise VolumeConflict(
                    f"the volume {name} exists with other options; remove it first: docker volume rm {name}"
                )
            if known is not None:
                return
            if len(self._known) >= VOLUMES_MAX:
                raise VolumeRefused(
                    f"there are {VOLUMES_MAX} volumes, which is the limit; remove some: docker volume prune"
                )
            self._store(Record(name, options, created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())))

    def mount(self, name: object, identity: object, caller: str = UNKNOWN) -> Path:
        """Where the volume is now, for the user that ``identity`` stands for; ``caller`` is the process that asks."""
        name, identity = volume_name(name), mount_id(identity)
        with self._turns.take(name):
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
                self._count(record, {**record.users, identity: caller})
            except OSError:
                if not record.users:
                    self._volumes.unpublish(record.name, target, keep=True)
                raise
            return target

    def unmount(self, name: object, identity: object) -> None:
        """That user has ended; with the last one the mount ends. What was written stays."""
        name, identity = volume_name(name), mount_id(identity)
        with self._turns.take(name):
            record = self._record(name)
            others = {name: asker for name, asker in record.users.items() if name != identity}
            left = self._living(replace(record, users=others))
            self._count(record, left)
            if not left:
                self._volumes.unpublish(record.name, self._target(record), keep=True)

    def remove(self, name: object) -> None:
        """With what was written to it. One that is not there has been removed: dockerd looks first, and may ask twice.

        It asks only if it knows of nobody who uses it. Who is counted all the same is somebody whose mount it never got an answer
        for, since the plugin was killed, and so never takes back; unless a container sees the volume, of another dockerd, say.
        """
        name = volume_name(name)
        with self._turns.take(name):
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
        """At the start: mounts that nobody counts end, and those that are counted stay as they are.

        What fails is logged: it concerns that volume alone, and mounting it says so again.
        """
        self._volumes.recover()
        for record in list(self._known.values()):
            try:
                if not record.users:
                    self._volumes.unpublish(record.name, self._target(record), keep=True)
            except (MountError, OSError) as error:
                log.error("volume %s: %s", record.name, error)

    # --- what only looks

    def mountpoint(self, name: object) -> str:
        """Empty if nobody uses it."""
        return self._shown_mountpoint(self._record(volume_name(name)))

    def describe(self, name: object) -> dict[str, object]:
        """As Docker shows it in ``docker volume inspect``. No file system is asked for it."""
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
        """Of each volume, for people."""
        records = sorted(self._known.copy().values(), key=lambda record: record.name)
        return [{"name": record.name, "created": record.created} | self._details(record) for record in records]

    def published(self) -> Mapping[str, int]:
        """How many volumes are mounted, by mode."""
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

    def _living(self, record: Record) -> Mapping[str, str]:
        """Those who use it, without what a dockerd that was killed has never taken back."""
        left = {name: asker for name, asker in record.users.items() if not is_gone(asker)}
        if left or not record.users:
            return record.users
        if self._is_seen(record):
            return record.users  # containers that have outlived it
        log.info("volume %s: who asked for it is gone, and nobody uses it", record.name)
        return {}

    def _is_seen(self, record: Record) -> bool:
        """By a container. Of a read-only one that is not known: its source is that of all of them."""
        source = overlay_source(record.name)
        return record.options.mode == "overlay" and is_mounted_elsewhere(source, self._target(record))

    def _count(self, record: Record, users: Mapping[str, str]) -> None:
        if users != record.users:
            self._store(replace(record, users=users))

    def _store(self, record: Record) -> None:
        self._records.save(record)
        self._known[record.name] = record


class _Turns:
    """One call at a time for each volume: two of them don't wait for each other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._turns: dict[str, tuple[threading.Lock, int]] = {}

    @contextmanager
    def take(self, name: str) -> Iterator[None]:
        """Raises VolumeBusy if it takes too long."""
        with self._lock:
            turn, waiting = self._turns.get(name, (threading.Lock(), 0))
            self._turns[name] = turn, waiting + 1
        try:
            if not turn.acquire(timeout=TURN_SECONDS):
                step = "check that its cache answers: nar-serve docker-volume --status"
                raise VolumeBusy(f"another call for the volume {name} has been running for a minute; {step}")
            try:
                yield
            finally:
                turn.release()
        finally:
            with self._lock:
                turn, waiting = self._turns.pop(name)
                if waiting > 1:
                    self._turns[name] = turn, waiting - 1
