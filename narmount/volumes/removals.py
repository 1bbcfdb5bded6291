"""What containers have written goes with their volumes: as much as is quickly done at once, the rest in the background.

It can be millions of files. Who asks for the next volume has to wait for none of them.
"""

import logging
import time
from collections.abc import Iterable
from pathlib import Path

from narcore.concurrency.background import WorkQueue
from narmount.volumes.trees import remove_tree

AT_ONCE_SECONDS = 1.0  # so long a call takes part in it

log = logging.getLogger("narmount.volumes")


class Removals:
    """Thread-safe. What fails is logged: it is tried again at the next start, as is what was not finished."""

    def __init__(self) -> None:
        self._put_off = WorkQueue("removals", _remove)

    def remove(self, directories: Iterable[Path]) -> None:
        """Returns soon, whatever is in them."""
        deadline = time.monotonic() + AT_ONCE_SECONDS
        for directory in directories:
            try:
                remove_tree(directory, deadline - time.monotonic())
            except TimeoutError:
                self._put_off.put(directory)
            except OSError as error:
                _report(directory, error)


def _remove(directory: Path) -> None:
    try:
        remove_tree(directory)
    except OSError as error:
        _report(directory, error)


def _report(directory: Path, error: OSError) -> None:
    log.warning("%s can't be removed: %s", directory, error)
