"""Maintenance of the cache directory: removes the files that dead processes left, and verifies all entries again."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

from narcore.cache import failures
from narcore.cache.cached import has_digest
from narcore.cache.errors import as_cache_failure
from narcore.cache.eviction import Entry, entries, remove_entry
from narcore.cache.layout import THIS_BOOT, FileKey, Layout, NarKey, is_verified
from narcore.cache.locks import READ_FLAGS, is_still_at, remove_if_free
from narcore.cache.unpacked import has_contents_of_nar

log = logging.getLogger("narcore.cache")

Progress = Callable[[int], None]


def clean(layout: Layout) -> int:
    """Remove the files that dead processes left; return how many. Files of running processes stay."""
    removed = 0
    with suppress(OSError):  # a read-only directory can still be used for reading
        leftovers = layout.leftovers()
        for readers, part in leftovers.parts:
            removed += len(remove_if_free(readers, also=part))
        for path in leftovers.new:
            removed += len(remove_if_free(path))
        old = [path for path in leftovers.errors if failures.is_old(path)]
        orphans = [listing for listing, nar in leftovers.listings if not nar.exists()]
        for path in old + orphans:
            path.unlink(missing_ok=True)
            removed += 1
    return removed


def remove_bad(layout: Layout, key: NarKey, fd: int) -> None:
    """Remove the NAR that is open at ``fd`` from the cache, unless another file has taken its place."""
    with suppress(OSError):
        if is_still_at(fd, layout.nar(key.digits)):
            log.warning("the NAR %s in the cache does not have its hash; removing it", key.digits)
            remove_entry(layout, key.digits)


def verify(layout: Layout, progress: Progress = lambda size: None) -> Iterator[tuple[Entry, bool]]:
    """Hash every NAR again, and remove NARs with a wrong hash. Yields pairs: an entry, and whether it is correct.

    Unpacked files are compared with their NARs. An unpacked file without its NAR is removed and not yielded. ``progress`` is
    called with the number of bytes just read; the total is the size of all files. Raises CacheFailure.
    """
    with as_cache_failure():
        found = entries(layout)
    for entry in sorted(found, key=lambda entry: entry.file is not None):  # NARs first: files are compared with them
        with as_cache_failure():
            right = _verify_file(layout, entry.file, progress) if entry.file else _verify_nar(layout, entry, progress)
        if right is not None:
            yield entry, right


def _verify_nar(layout: Layout, entry: Entry, progress: Progress) -> bool | None:
    """Return whether the NAR is correct; None if it was evicted meanwhile."""
    path = layout.nar(entry.digits)
    try:
        fd = os.open(path, READ_FLAGS)
    except FileNotFoundError:
        return None
    try:
        status = os.fstat(fd)
        right = has_digest(fd, entry.digits, progress)
        if right:
            _mark_verified(fd, status)
        else:
            remove_bad(layout, NarKey(entry.digits, status.st_size), fd)
            _mark_changed(fd)
        return right
    finally:
        os.close(fd)


def _verify_file(layout: Layout, file: FileKey, progress: Progress) -> bool | None:
    """Return whether the file is correct; None if it was evicted meanwhile, or its NAR does not exist."""
    path = layout.file(file)
    with ExitStack() as stack:
        try:
            fd = os.open(path, READ_FLAGS)
            stack.callback(os.close, fd)
            nar_fd = os.open(layout.nar(file.digits), READ_FLAGS)
            stack.callback(os.close, nar_fd)
        except FileNotFoundError:
            path.unlink(missing_ok=True)
            return None
        status = os.fstat(fd)
        right = has_contents_of_nar(file, fd, nar_fd)
        progress(file.size)
        if right:
            _mark_verified(fd, status)
        elif is_still_at(fd, path):
            path.unlink(missing_ok=True)
        return right


def _mark_changed(fd: int) -> None:
    """Remove the mark of a wrong NAR. Readers that have the NAR open then fail (see CachedNar.check_untouched)."""
    with suppress(OSError):
        os.utime(fd)


def _mark_verified(fd: int, status: os.stat_result) -> None:
    """Mark a file as verified. Its access time is reset to that of ``status``, since verifying does not count as a use."""
    with suppress(OSError):
        mtime = status.st_mtime_ns if is_verified(status) else THIS_BOOT * 10**9
        os.utime(fd, ns=(status.st_atime_ns, mtime))
