"""Closures that a volume wants fetched ahead: told to the mount in the background, so that nobody waits for its answer."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from narcore.concurrency.background import WorkQueue
from narcore.errors import MountError
from narmount.daemon.control import ask_prefetch

WISHES_MAX = 1000  # a mount that does not answer for long is one whose volumes can't be used either
ANSWER_SECONDS = 30.0  # the mount answers at once, unless its worker is just being replaced

log = logging.getLogger("narmount.volumes")


class _Wish(NamedTuple):
    volume_id: str
    socket: Path
    names: tuple[str, ...]


class VolumePrefetch:
    """Thread-safe. What fails is logged, and nothing else: a volume works without it."""

    def __init__(self) -> None:
        self._wishes = WorkQueue("ahead", _tell)

    def ask(self, volume_id: str, socket: Path, names: Sequence[str]) -> None:
        """``names`` are base names of store paths. Returns at once."""
        if len(self._wishes) >= WISHES_MAX:
            log.warning("volume %s: nothing is fetched ahead, since the mount does not answer", volume_id)
            return
        self._wishes.put(_Wish(volume_id, socket, tuple(names)))


def _tell(wish: _Wish) -> None:
    try:
        ask_prefetch(wish.socket, wish.names, ANSWER_SECONDS)
    except (MountError, OSError) as error:
        log.warning("volume %s: nothing is fetched ahead: %s", wish.volume_id, error)
