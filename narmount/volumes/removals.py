"""Removes what containers have written to their volumes.

A container may have written millions of files. So a call removes files only for a short time, and a background thread
removes the remaining files. So no call has to wait for them.
"""

import logging
import time
from collections.abc import Iterable
from pathlib import Path

from narcore.concurrency.background import WorkQueue
from narmount.volumes.trees import remove_tree

AT_ONCE_SECONDS = 1.0  # how long a call removes files before the background thread takes over

log = logging.getLogger("narmount.volumes")


class Removals:
    """Removes directories. Failures are logged. Failed and unfinished removals are retried at the next start. Thread-safe."""

    def __init__(self) -> None:
        self._deferred = WorkQueue("removals", _remove)

    def remove(self, directories: Iterable[Path]) -> None:
        """Remove directories. After AT_ONCE_SECONDS, the background thread removes the rest."""
        deadline = time.monotonic() + AT_ONCE_SECONDS
        for directory in directories:
            try:
                remove_tree(directory, deadline - time.monotonic())
            except TimeoutError:
                self._deferred.put(directory)
            except OSError as error:
                _report(directory, error)


def _remove(directory: Path) -> None:
    try:
        remove_tree(directory)
    except OSError as error:
        _report(directory, error)


def _report(directory: Path, error: OSError) -> None:
    log.warning("%s can't be removed: %s", directory, error)
