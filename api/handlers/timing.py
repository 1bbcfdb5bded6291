"""How long the steps of an answer took, for the Server-Timing header (https://www.w3.org/TR/server-timing/)."""

import time
from collections.abc import Generator
from contextlib import contextmanager


class Timing:
    """Steps in the order in which they were taken."""

    def __init__(self) -> None:
        self._steps: list[tuple[str, float]] = []

    @contextmanager
    def of(self, step: str) -> Generator[None]:
        started = time.perf_counter()
        yield
        self._steps.append((step, time.perf_counter() - started))

    @property
    def header(self) -> str:
        return ", ".join(f"{step};dur={seconds * 1000:.2f}" for step, seconds in self._steps)
