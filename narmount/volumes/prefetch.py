"""Asks a mount to prefetch closures for a volume. This happens in the background, so publishing does not wait for the mount."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from narcore.concurrency.background import WorkQueue
from narcore.errors import MountError
from narmount.daemon.control import ask_prefetch

REQUESTS_MAX = 1000  # waiting requests; if a mount leaves this many unanswered, its volumes don't work either
ANSWER_SECONDS = 30.0  # a mount answers immediately, unless its worker is being replaced

log = logging.getLogger("narmount.volumes")


class _Request(NamedTuple):
    volume_id: str
    socket: Path
    names: tuple[str, ...]


class VolumePrefetch:
    """The prefetch requests for one mount. Failures are only logged, since a volume works without prefetching. Thread-safe."""

    def __init__(self) -> None:
        self._requests = WorkQueue("prefetch", _send)

    def ask(self, volume_id: str, socket: Path, names: Sequence[str]) -> None:
        """Queue a request to prefetch the store paths whose base names are ``names``. Returns immediately."""
        if len(self._requests) >= REQUESTS_MAX:
            log.warning("volume %s: prefetch skipped, since the mount does not answer", volume_id)
            return
        self._requests.put(_Request(volume_id, socket, tuple(names)))


def _send(request: _Request) -> None:
    try:
        ask_prefetch(request.socket, request.names, ANSWER_SECONDS)
    except (MountError, OSError) as error:
        log.warning("volume %s: prefetch failed: %s", request.volume_id, error)
