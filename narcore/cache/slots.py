"""How many fills may run at once, over all processes that share the directory."""

import os
import time
from collections.abc import Generator
from contextlib import contextmanager

from narcore.cache.layout import Layout
from narcore.cache.locks import OPEN_FLAGS, try_lock
from narcore.errors import CapacityError

POLL_SECONDS = 0.02


class Slots:
    """``count`` lock files, of which a fill holds one. Who waits longer than ``patience`` seconds for one is turned away."""

    def __init__(self, layout: Layout, count: int, *, patience: float = 10.0) -> None:
        self._layout = layout
        self._count = count
        self._patience = patience

    @contextmanager
    def hold(self) -> Generator[None]:
        """Raises CapacityError, and OSError if the directory can't be written."""
        fd = self._take()
        try:
            yield
        finally:
            os.close(fd)

    def _take(self) -> int:
        deadline = time.monotonic() + self._patience
        while True:
            for number in range(self._count):
                fd = os.open(self._layout.slot(number), OPEN_FLAGS, 0o600)
                if try_lock(fd):
                    return fd
                os.close(fd)
            if time.monotonic() >= deadline:
                raise CapacityError(f"all {self._count} downloads that may run at once are taken", retry_after=10)
            time.sleep(POLL_SECONDS)
