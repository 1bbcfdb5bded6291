"""Volumes: views of a mount for containers. Each volume is mounted at its own target.

The process may crash after any step, so the order of the steps matters::

    publish     write the state - create the target - mount
    unpublish   unmount - remove the target - forget the state - remove the written files

An operation that was interrupted is completed by the same call when it is repeated, by unpublish, or by ``recover`` at the next
start.
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

USAGE_SECONDS = 60.0  # how long a measured usage stays valid; kubelet asks every minute
COUNT_SECONDS = 2.0  # how long a measurement may take; after that, the size found so far is reported
TURN_SECONDS = 0.2  # how long a call waits for another measurement to end

_READ_ONLY_OPTIONS = {"ro", "nosuid", "nodev"}

log = logging.getLogger("narmount.volumes")


class Volumes:
    """The volumes whose states are in ``directory``. Thread-safe; several processes may share a directory.

    ``stores`` maps the names of caches to the real paths of their mounts. If ``within`` is given, all targets must be
    below it.

    The methods raise an error of ``narmount.volumes.errors``, MountError if the kernel refuses to mount, and OSError if the disk
    fails.
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
        # One queue for each cache, so that a mount that does not answer does not delay the others.
        self._prefetch = {cache: VolumePrefetch() for cache in stores}
        self._removals = Removals()
        self._liveness = Liveness(stores)
        self._usage: dict[str, tuple[float, int]] = {}
        self._measuring = threading.Lock()

    # --- methods that change something

    def publish(
        self,
        volume_id: str,
        target: Path,
        request: VolumeRequest,
        *,
        keep: bool = False,
    ) -> None:
        """Mount a volume at ``target``, which is created. Does nothing if the same volume is mounted there already.

        With ``keep``, what is written to the volume stays until ``unpublish`` is called without ``keep``.
        """
        target = self._checked(volume_id, target)
        cache = request.cache
        store_dir = self._store(cache)
        with self._states.locked(volume_id):
            device = self._live_mount(cache, store_dir).device
            volume = Volume(volume_id, target, cache, request.mode, request.group, keep, device, self._boot_id)
            if not self._is_mounted(volume):
                self._mount(volume, store_dir)
        if request.prefetch:
            self._prefetch[cache].ask(volume_id, self.control(cache), request.prefetch)

    def unpublish(self, volume_id: str, target: Path, *, keep: bool = False) -> None:
        """Unmount a volume and remove ``target``. Works even if the volume is not mounted, or its state is lost or can't be read.

        What was written to the volume is removed, unless ``keep`` is set.
        """
        target = self._checked(volume_id, target)
        with self._states.locked(volume_id):
            volume = self._states.read(volume_id) if keep else self._state_if_readable(volume_id)
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
        """Make every overlay of a cache forget the names that it did not find. Returns the number of overlays. Logs failures."""
        done = 0
        sources = {mounted.source for mounted in mounts()}
        for volume in self.list():
            if volume.cache == cache and volume.source in sources:
                done += self._flush(volume.id)
        return done

    def recover(self) -> None:
        """Complete interrupted operations, and remove volumes that a reboot has ended. Called at the start. Logs failures."""
        for volume_id in self._states.ids():
            try:
                with self._states.locked(check_id(volume_id)):
                    self._recover(volume_id)
            except (MountError, OSError) as error:
                log.error("volume %s: %s", volume_id, error)
        self._removals.remove(self._states.forgotten())

    # --- methods that only read

    def warn_of_dead_caches(self) -> None:
        """Log a warning for each cache that is not mounted, since its directory may be mistyped.

        A cache that is not mounted is not an error: it may be mounted later.
        """
        for cache, store_dir in self._stores.items():
            try:
                self._live_mount(cache, store_dir)
            except CacheDead as error:
                log.warning("%s; until then its volumes can't be mounted", error)

    def list(self) -> list[Volume]:
        """Return all volumes whose states can be read, in the order of their ids."""
        found = []
        for volume_id in self._states.ids():
            with suppress(MountError):  # logged at the start, and raised by every operation on the volume
                volume = self._states.read(volume_id)
                if volume is not None:
                    found.append(volume)
        return found

    def find(self, volume_id: str, target: Path) -> Volume:
        """Return the volume that is mounted at ``target``. Raises NoSuchVolume."""
        target = self._checked(volume_id, target)
        volume = self._states.read(volume_id)
        if volume is None or volume.target != target or not _shows(mounts_at(target)[-1:], volume):
            raise NoSuchVolume(f"there is no volume {volume_id} at {target}")
        return volume

    def published(self) -> dict[str, int]:
        """Return the number of mounted volumes by mode."""
        targets = {mounted.target for mounted in mounts()}
        modes = [volume.mode for volume in self.list() if volume.target in targets]
        return {mode: modes.count(mode) for mode in MODES}

    def usage(self, volume_id: str) -> int:
        """Return the size on the disk, in bytes, of what was written to a volume. Raises VolumeBusy.

        The result may be USAGE_SECONDS old. One volume is measured at a time, so that not all calls wait for the disk.
        """
        check_id(volume_id)
        measured_at, last = self._usage.get(volume_id, (None, 0))
        if measured_at is not None and time.monotonic() - measured_at < USAGE_SECONDS:
            return last
        if not self._measuring.acquire(timeout=TURN_SECONDS):
            if measured_at is None:
                raise VolumeBusy(f"the usage of other volumes is being measured; ask for {volume_id} again in a moment")
            return last
        try:
            found, is_complete = used_bytes(self._states.upper(volume_id), COUNT_SECONDS)
        finally:
            self._measuring.release()
        used = found if is_complete else max(found, last)
        if self._states.home(volume_id).exists():
            self._usage[volume_id] = time.monotonic(), used
        return used

    def space(self) -> int:
        """Return the number of bytes that can still be written to all volumes together. Raises OSError."""
        status = os.statvfs(self._states.directory)
        return status.f_bavail * status.f_frsize

    def control(self, cache: str) -> Path:
        """Return the path of the control socket of a cache's mount."""
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
            raise VolumeRefused(f"unknown cache {shown(cache)}; the caches here are {names}") from None

    def _live_mount(self, cache: str, store_dir: Path) -> Mount:
        """Return the mount of a cache. Raises CacheDead if it is not mounted or has died."""
        found = mounts_at(store_dir)
        if not found or found[-1].source != syscalls.SOURCE:
            raise CacheDead(f"the cache {cache} is not mounted; run nar-serve mount {store_dir}")
        if is_abandoned(self.control(cache)):
            raise CacheDead(f"the mount of the cache {cache} has died; run nar-serve mount {store_dir} again")
        return found[-1]

    def _is_mounted(self, volume: Volume) -> bool:
        """Return whether a volume is mounted as requested. Raises VolumeConflict if its target is in use.

        If the volume is mounted there, but the mount is incomplete or shows a dead cache, unmount it and return False.
        """
        assert volume.target is not None
        existing = self._states.read(volume.id)
        if existing is not None and self._is_mounted_elsewhere(existing, volume.target):
            raise VolumeElsewhere(f"the volume {volume.id} is mounted at {existing.target}; unpublish it there first")
        topmost = mounts_at(volume.target)[-1:]
        if not topmost:
            return False
        if existing is None or existing.boot_id != self._boot_id or not _shows(topmost, existing):
            raise VolumeConflict(f"something else is mounted at {volume.target}; unmount it, or choose another target")
        if not existing.has_options_of(volume):
            raise VolumeConflict(f"the volume {volume.id} is mounted with other options; unpublish it first")
        is_complete = existing.mode == "overlay" or {*topmost[0].options} >= _READ_ONLY_OPTIONS
        if existing.device == volume.device and is_complete:
            return True
        self._unmount(volume.id, volume.target, existing)
        return False

    def _state_if_readable(self, volume_id: str) -> Volume | None:
        """Return the state of a volume whose files are not kept. Returns None if the state is lost or can't be read.

        An unreadable state must not raise an error here: otherwise the pod could never end.
        """
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
        # The kernel asks the mount for its statistics.
        with self._liveness.checked(volume.cache, self.control(volume.cache)):
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
        """Create the directory of a volume. Files of an earlier volume of that id are removed, unless they are to be kept."""
        existing = self._states.read(volume.id)
        if existing is None or not (existing.keep or existing.boot_id == self._boot_id):
            self._discard(volume.id)
        self._states.home(volume.id).mkdir(mode=0o700, exist_ok=True)

    def _mount_overlay(self, volume: Volume, target: Path, store_dir: Path) -> None:
        upper, work = self._states.upper(volume.id), self._states.work(volume.id)
        remove_tree(work)  # the kernel refuses a directory that a volatile overlay has used
        work.mkdir(mode=0o700)
        upper.mkdir(exist_ok=True)
        _set_owner(upper, volume.group)
        syscalls.mount_overlay(
            target, name=volume.source, lower=store_dir, upper=upper, work=work, volatile=not volume.keep
        )

    def _undo(self, volume: Volume, target: Path) -> None:
        """Clean up after a failure, so that nothing is left even if the call is never repeated."""
        try:
            with suppress(VolumeConflict):  # the operation failed because the target has other files
                _remove_target(target)
            if volume.keep:
                self._states.write(replace(volume, target=None))
            else:
                self._discard(volume.id)
        except (MountError, OSError) as error:
            log.error("volume %s: %s", volume.id, error)

    def _unmount(self, volume_id: str, target: Path, volume: Volume | None) -> None:
        while found := mounts_at(target):
            if not self._is_ours(found[-1], volume_id, volume):
                raise VolumeConflict(f"the mount at {target} is not the volume {volume_id}; unmount it manually")
            try:
                syscalls.unmount(target)
            except MountError:  # the mount is in use, or dead
                syscalls.unmount(target, lazy=True)

    def _is_ours(self, mounted: Mount, volume_id: str, volume: Volume | None) -> bool:
        """Return whether a mount may be unmounted for a volume. ``volume`` is None if its state is lost."""
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
                volume = self._states.read(volume_id)  # the volume may have been unpublished meanwhile
                if volume is None or volume.target is None or volume.mode != "overlay":
                    return False
                if not _shows(mounts_at(volume.target)[-1:], volume):
                    return False
                syscalls.flush_overlay(volume.target)
                return True
        except (MountError, OSError) as error:
            log.warning("volume %s: can't flush the overlay, so new store paths stay missing: %s", volume_id, error)
            return False

    def _recover(self, volume_id: str) -> None:
        volume = self._states.read(volume_id)
        if volume is None:
            self._states.forget(volume_id)  # its creation was interrupted before it was mounted
            return
        if volume.target is None or _shows(mounts_at(volume.target)[-1:], volume):
            return
        if volume.boot_id == self._boot_id and volume.target.parent.exists():
            return  # the volume is not mounted now; a call that needs it will be repeated
        with suppress(MountError):  # the target has other files, which stay
            _remove_target(volume.target)
        if volume.keep:
            self._states.write(replace(volume, target=None))
            return
        self._states.forget(volume_id)
        log.info("volume %s is removed: it dates from before the last reboot, or its target is gone", volume_id)


def _shows(topmost: Sequence[Mount], volume: Volume) -> bool:
    """Return whether the topmost mount shows the volume. Returns False if there is no mount.

    A read-only volume has no source of its own; it is recognized by the device of the mount that it shows.
    """
    if not topmost:
        return False
    mounted = topmost[0]
    if volume.mode == "overlay":
        return mounted.fs_type == "overlay" and mounted.source == volume.source
    return mounted.device == volume.device and mounted.source == syscalls.SOURCE


def _make_target(target: Path) -> None:
    """Create the target of a volume. Raises VolumeConflict if it is in use, and OSError."""
    try:
        target.mkdir(mode=0o750, parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise _no_directory(target) from error
    if os.listdir(target):
        raise VolumeConflict(f"{target} is not empty, and the volume would hide its files; remove them")


def _no_directory(target: Path) -> VolumeConflict:
    return VolumeConflict(f"{target} is a file or below a file, but a volume needs a directory; remove the file")


def _remove_target(target: Path) -> None:
    """Remove the target of a volume, if it exists. Raises VolumeConflict if something is mounted or stored there, and OSError."""
    if mounts_at(target):
        raise VolumeConflict(f"something else is mounted at {target}; unmount it manually")
    try:
        target.rmdir()
    except FileNotFoundError:
        return
    except NotADirectoryError as error:
        raise _no_directory(target) from error
    except OSError as error:
        if target.is_dir() and os.listdir(target):
            raise VolumeConflict(
                f"{target} contains files that do not belong to the volume, so it is not removed; remove them"
            ) from error
        raise


def _set_owner(upper: Path, group: int | None) -> None:
    """Let a group write to the root of an overlay, which has the owner and mode of the upper layer.

    Raises VolumeRefused or OSError.
    """
    if group is None:
        upper.chmod(0o755)
        return
    try:
        os.chown(upper, -1, group)
    except OSError as error:
        raise VolumeRefused(
            f"can't set the group of the volume to {group} ({error.strerror}); use another group"
        ) from error
    upper.chmod(0o2775)
