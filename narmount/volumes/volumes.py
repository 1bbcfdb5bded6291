"""Volumes: a mount as one container sees it, at a target of its own.

Each step can be the last one before a crash, so their order is what counts::

    publish     state written - target made - mounted
    unpublish   unmounted - target removed - state forgotten - what was written removed

Whatever is left half done is ended by the same call when it is made again, by unpublish, or by ``recover`` at the next start.
"""

import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from narcore.errors import MountError
from narmount.daemon.control import control_path, is_abandoned
from narmount.fuse import syscalls
from narmount.fuse.mountinfo import Mount, mounts, mounts_at
from narmount.volumes.errors import CacheDead, NoSuchVolume, VolumeBusy, VolumeConflict, VolumeElsewhere, VolumeRefused
from narmount.volumes.liveness import Liveness
from narmount.volumes.prefetch import VolumePrefetch
from narmount.volumes.removals import Removals
from narmount.volumes.request import MODES, VolumeRequest
from narmount.volumes.statefiles import current_boot_id
from narmount.volumes.states import States, Volume, overlay_source
from narmount.volumes.targets import check_id, check_target, shown
from narmount.volumes.trees import remove_tree, used_bytes

USAGE_SECONDS = 60.0  # so long a count holds: the kubelet asks every minute
COUNT_SECONDS = 2.0  # so long counting may take; what was found by then is what is reported
TURN_SECONDS = 0.2  # so long a call waits for its turn to count

_SAFE = {"ro", "nosuid", "nodev"}

log = logging.getLogger("narmount.volumes")


class Volumes:
    """``stores`` are the mounts that volumes can show, by name: real paths. ``within``: all targets have to be below it.

    Thread-safe; several processes may share a directory.

    Errors are those of ``narmount.volumes.errors``, MountError for what the kernel refuses, and OSError for a disk that fails.
    """

    def __init__(
        self,
        directory: Path,
        stores: Mapping[str, Path],
        run_dir: Path,
        *,
        within: Path | None = None,
        boot_id: str | None = None,
    ) -> None:
        self._states = States(Path(os.path.realpath(directory)))
        self._stores = dict(stores)
        self._run_dir = run_dir
        self._within = Path(os.path.realpath(within)) if within is not None else None
        self._boot_id = boot_id or current_boot_id()
        self._ahead = {
            cache: VolumePrefetch() for cache in stores
        }  # one that does not answer is not in the way of the others
        self._removals = Removals()
        self._liveness = Liveness(stores)
        self._usage: dict[str, tuple[float, int]] = {}
        self._counting = threading.Lock()

    # --- what changes something

    def publish(
        self,
        volume_id: str,
        target: Path,
        request: VolumeRequest,
        *,
        keep: bool = False,
    ) -> None:
        """Mount a volume at ``target``, which is created. Does nothing if the same volume is mounted there already.

        With ``keep``, what is written to the volume stays until ``unpublish`` is called without it.
        """
        target = self._checked(volume_id, target)
        cache = request.cache
        store_dir = self._store(cache)
        with self._states.locked(volume_id):
            device = self._live(cache, store_dir).device
            wanted = Volume(volume_id, target, cache, request.mode, request.group, keep, device, self._boot_id)
            if not self._is_done(wanted):
                self._mount(wanted, store_dir)
        if request.prefetch:
            self._ahead[cache].ask(volume_id, self.control(cache), request.prefetch)

    def unpublish(self, volume_id: str, target: Path, *, keep: bool = False) -> None:
        """Unmount it, and remove ``target``; also if it is not mounted, or its state is lost or can't be read.

        What was written to it is removed, unless ``keep``.
        """
        target = self._checked(volume_id, target)
        with self._states.locked(volume_id):
            volume = self._states.read(volume_id) if keep else self._readable(volume_id)
            self._unmount(volume_id, target, volume)
            _remove_target(target)
            if volume is not None and self._is_mounted_elsewhere(volume, target):
                return
            if keep and volume is not None:
                self._states.write(replace(volume, target=None))
                return
            gone = self._states.forget(volume_id)
        self._usage.pop(volume_id, None)
        self._remove(gone)

    def flush(self, cache: str) -> int:
        """Have every overlay of that cache forget which names it did not find; how many there were. What fails is logged."""
        done = 0
        sources = {mounted.source for mounted in mounts()}
        for volume in self.list():
            if volume.cache == cache and volume.source in sources:
                done += self._flush(volume.id)
        return done

    def recover(self) -> None:
        """At the start: end what was interrupted, and remove what a reboot has left. What fails is logged."""
        for volume_id in self._states.ids():
            try:
                with self._states.locked(check_id(volume_id)):
                    self._recover(volume_id)
            except (MountError, OSError) as error:
                log.error("volume %s: %s", volume_id, error)
        self._removals.remove(self._states.forgotten())

    # --- what only looks

    def warn_of_dead_caches(self) -> None:
        """At the start, for whoever has mistyped a directory. It is no error: the mount may come later."""
        for cache, store_dir in self._stores.items():
            try:
                self._live(cache, store_dir)
            except CacheDead as error:
                log.warning("%s; until then it has no volumes", error)

    def list(self) -> list[Volume]:
        """All that can be read, in the order of their ids."""
        found = []
        for volume_id in self._states.ids():
            with suppress(MountError):  # said at the start, and whenever something is done with it
                volume = self._states.read(volume_id)
                if volume is not None:
                    found.append(volume)
        return found

    def find(self, volume_id: str, target: Path) -> Volume:
        """The volume that is mounted at ``target``. Raises NoSuchVolume."""
        target = self._checked(volume_id, target)
        volume = self._states.read(volume_id)
        if volume is None or volume.target != target or not _shows(mounts_at(target)[-1:], volume):
            raise NoSuchVolume(f"there is no volume {volume_id} at {target}")
        return volume

    def published(self) -> dict[str, int]:
        """How many are mounted, by mode."""
        targets = {mounted.target for mounted in mounts()}
        modes = [volume.mode for volume in self.list() if volume.target in targets]
        return {mode: modes.count(mode) for mode in MODES}

    def usage(self, volume_id: str) -> int:
        """Bytes on the disk of what was written to it, counted once a minute at most. Raises VolumeBusy.

        One volume is counted at a time, so that calls for others don't all wait for the disk.
        """
        check_id(volume_id)
        counted, before = self._usage.get(volume_id, (None, 0))
        if counted is not None and time.monotonic() - counted < USAGE_SECONDS:
            return before
        if not self._counting.acquire(timeout=TURN_SECONDS):
            if counted is None:
                raise VolumeBusy(f"other volumes are being counted; ask for {volume_id} again in a moment")
            return before
        try:
            found, is_all = used_bytes(self._states.upper(volume_id), COUNT_SECONDS)
        finally:
            self._counting.release()
        used = found if is_all else max(found, before)
        if self._states.home(volume_id).exists():
            self._usage[volume_id] = time.monotonic(), used
        return used

    def space(self) -> int:
        """Bytes that can still be written to volumes, all together. Raises OSError."""
        status = os.statvfs(self._states.directory)
        return status.f_bavail * status.f_frsize

    def control(self, cache: str) -> Path:
        """The control socket of a cache's mount."""
        return control_path(self._run_dir, self._store(cache))

    # --- steps

    def _checked(self, volume_id: str, target: Path) -> Path:
        check_id(volume_id)
        return check_target(target, (*self._stores.values(), self._states.directory), self._within)

    def _store(self, cache: str) -> Path:
        try:
            return self._stores[cache]
        except KeyError:
            names = ", ".join(self._stores)
            raise VolumeRefused(f"there is no cache {shown(cache)}; there are: {names}") from None

    def _live(self, cache: str, store_dir: Path) -> Mount:
        """What is mounted there. Raises CacheDead."""
        there = mounts_at(store_dir)
        if not there or there[-1].source != syscalls.SOURCE:
            raise CacheDead(f"the cache {cache} is not mounted; run nar-serve mount {store_dir}")
        if is_abandoned(self.control(cache)):
            raise CacheDead(f"the mount of the cache {cache} has died; run nar-serve mount {store_dir} again")
        return there[-1]

    def _is_done(self, wanted: Volume) -> bool:
        """Whether it is mounted as wanted. What is ours, but incomplete or dead, is unmounted. Raises VolumeConflict."""
        assert wanted.target is not None
        before = self._states.read(wanted.id)
        if before is not None and self._is_mounted_elsewhere(before, wanted.target):
            raise VolumeElsewhere(f"the volume {wanted.id} is mounted at {before.target}; unpublish it there first")
        on_top = mounts_at(wanted.target)[-1:]
        if not on_top:
            return False
        if before is None or before.boot_id != self._boot_id or not _shows(on_top, before):
            raise VolumeConflict(f"something else is mounted at {wanted.target}; unmount it, or name another target")
        if not before.has_options_of(wanted):
            raise VolumeConflict(f"the volume {wanted.id} is there with other options; unpublish it first")
        if before.device == wanted.device and (before.mode == "overlay" or {*on_top[0].options} >= _SAFE):
            return True
        self._unmount(wanted.id, wanted.target, before)
        return False

    def _readable(self, volume_id: str) -> Volume | None:
        """Its state, or None, as if it were lost: nothing of it is to be kept. Its pod could never end otherwise."""
        try:
            return self._states.read(volume_id)
        except MountError as error:
            log.warning("volume %s: %s", volume_id, error)
            return None

    def _is_mounted_elsewhere(self, volume: Volume, target: Path) -> bool:
        if volume.target is None or volume.target == target or volume.boot_id != self._boot_id:
            return False
        return _shows(mounts_at(volume.target)[-1:], volume)

    def _mount(self, volume: Volume, store_dir: Path) -> None:
        if volume.mode == "ro":
            self._write_and_mount(volume, store_dir)
            return
        with self._liveness.checked(volume.cache, self.control(volume.cache)):  # the kernel asks it for its statistics
            self._write_and_mount(volume, store_dir)

    def _write_and_mount(self, volume: Volume, store_dir: Path) -> None:
        assert volume.target is not None
        self._make_home(volume)
        self._states.write(volume)
        try:
            _make_target(volume.target)
            if volume.mode == "ro":
                syscalls.bind_read_only(store_dir, volume.target)
            else:
                self._mount_overlay(volume, volume.target, store_dir)
        except (MountError, OSError):
            self._undo(volume, volume.target)
            raise

    def _make_home(self, volume: Volume) -> None:
        """Its directory, without what an earlier volume of that id has left, unless that is to be kept."""
        before = self._states.read(volume.id)
        if before is None or not (before.keep or before.boot_id == self._boot_id):
            self._discard(volume.id)
        self._states.home(volume.id).mkdir(mode=0o700, exist_ok=True)

    def _mount_overlay(self, volume: Volume, target: Path, store_dir: Path) -> None:
        upper, work = self._states.upper(volume.id), self._states.work(volume.id)
        remove_tree(work)  # the kernel refuses one that was used by a volatile overlay
        work.mkdir(mode=0o700)
        upper.mkdir(exist_ok=True)
        _set_owner(upper, volume.group)
        syscalls.mount_overlay(
            target, name=volume.source, lower=store_dir, upper=upper, work=work, volatile=not volume.keep
        )

    def _undo(self, volume: Volume, target: Path) -> None:
        """After a failure nothing is left, so that it does not matter whether anybody calls again."""
        try:
            with suppress(VolumeConflict):  # somebody else's files are there: that is the failure
                _remove_target(target)
            if volume.keep:
                self._states.write(replace(volume, target=None))
            else:
                self._discard(volume.id)
        except (MountError, OSError) as error:
            log.error("volume %s: %s", volume.id, error)

    def _unmount(self, volume_id: str, target: Path, volume: Volume | None) -> None:
        while there := mounts_at(target):
            if not self._is_ours(there[-1], volume_id, volume):
                raise VolumeConflict(f"what is mounted at {target} is not the volume {volume_id}; unmount it by hand")
            try:
                syscalls.unmount(target)
            except MountError:  # in use, or dead
                syscalls.unmount(target, lazy=True)

    def _is_ours(self, mounted: Mount, volume_id: str, volume: Volume | None) -> bool:
        """Whether it may be unmounted for that volume, whose state may be lost."""
        if volume is not None and volume.target == mounted.target:
            return _shows([mounted], volume)
        if mounted.fs_type == "overlay":
            return mounted.source == overlay_source(volume_id)
        is_of_another = any(other.target == mounted.target for other in self.list())
        return mounted.source == syscalls.SOURCE and mounted.root == "/" and not is_of_another

    def _discard(self, volume_id: str) -> None:
        self._remove(self._states.forget(volume_id))

    def _remove(self, gone: Path | None) -> None:
        if gone is not None:
            self._removals.remove([gone])

    def _flush(self, volume_id: str) -> bool:
        try:
            with self._states.locked(volume_id):
                volume = self._states.read(volume_id)  # it may have gone
                if volume is None or volume.target is None or volume.mode != "overlay":
                    return False
                if not _shows(mounts_at(volume.target)[-1:], volume):
                    return False
                syscalls.flush_overlay(volume.target)
                return True
        except (MountError, OSError) as error:
            log.warning("volume %s does not see what was published late: %s", volume_id, error)
            return False

    def _recover(self, volume_id: str) -> None:
        volume = self._states.read(volume_id)
        if volume is None:
            self._states.forget(volume_id)  # its making was interrupted, before it could be mounted
            return
        if volume.target is None or _shows(mounts_at(volume.target)[-1:], volume):
            return
        if volume.boot_id == self._boot_id and volume.target.parent.exists():
            return  # not mounted yet, or no more: whoever wants it will say so again
        with suppress(MountError):  # somebody else's files are there; they can stay
            _remove_target(volume.target)
        if volume.keep:
            self._states.write(replace(volume, target=None))
            return
        self._states.forget(volume_id)
        log.info(
            "volume %s is removed: it was of before the machine was started again, or its target is gone", volume_id
        )


def _shows(on_top: Sequence[Mount], volume: Volume) -> bool:
    """Whether that is the volume; a read-only one has no name of its own, but the device of the mount that it shows."""
    if not on_top:
        return False
    mounted = on_top[0]
    if volume.mode == "overlay":
        return mounted.fs_type == "overlay" and mounted.source == volume.source
    return mounted.device == volume.device and mounted.source == syscalls.SOURCE


def _make_target(target: Path) -> None:
    """Raises OSError, VolumeConflict."""
    try:
        target.mkdir(mode=0o750, parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise _no_directory(target) from error
    if os.listdir(target):
        raise VolumeConflict(f"{target} is not empty; what is in it would be hidden: remove it")


def _no_directory(target: Path) -> VolumeConflict:
    return VolumeConflict(f"{target} is a file, or below one, and a volume needs a directory; remove that")


def _remove_target(target: Path) -> None:
    """It may be gone already. Nothing may be mounted there. Raises VolumeConflict, OSError."""
    if mounts_at(target):
        raise VolumeConflict(f"something else is mounted at {target}; unmount it by hand")
    try:
        target.rmdir()
    except FileNotFoundError:
        return
    except NotADirectoryError as error:
        raise _no_directory(target) from error
    except OSError as error:
        if target.is_dir() and os.listdir(target):
            raise VolumeConflict(f"{target} has files of somebody else, and is not removed; remove them") from error
        raise


def _set_owner(upper: Path, group: int | None) -> None:
    """The root of an overlay has the owner and the mode of its upper layer's. Raises VolumeRefused, OSError."""
    if group is None:
        upper.chmod(0o755)
        return
    try:
        os.chown(upper, -1, group)
    except OSError as error:
        raise VolumeRefused(f"the group {group} can't be given files here ({error.strerror}); name another") from error
    upper.chmod(0o2775)
