"""Highlights source text within a limit of CPU time, in a process of its own.

Some lexers need minutes of CPU time for a small hostile text, and a regular expression of CPython can be neither interrupted nor
run beside other threads. So a child process highlights each text: the kernel ends it when it has used its CPU time, and meanwhile
the threads of this process run. A child takes a tenth of a second to start, therefore the results are cached.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from typing import TypeVar

from api.view.source import Language, plain_lines
from api.view.storelinks import StoreLinks
from narcore.concurrency.lru import LruMemory

SECONDS = 2.0

# A child that waits for a processor uses no CPU time. This limits the time that a request waits for it, in seconds.
_WAIT = 8.0

# How long a request waits for its turn, in seconds. Most texts take a tenth of that.
PATIENCE = 1.0

# Bytes of results per process. A page of 128 KiB becomes about 0.5 MB of HTML.
_CACHE = 32 << 20

T = TypeVar("T")


class Highlighter:
    """Makes the lines of at most ``threads`` / 4 texts at once. At most ``threads`` / 4 further requests wait for their turn.

    So half of the threads of a server are free for other requests. ``seconds`` is the CPU time of a child, and ``patience`` is
    how many seconds a request waits. Thread-safe.
    """

    def __init__(self, threads: int, *, seconds: float = SECONDS, patience: float = PATIENCE) -> None:
        quarter = max(1, threads // 4)
        self._slots = threading.BoundedSemaphore(quarter)
        self._queue = threading.BoundedSemaphore(quarter)
        self._seconds = seconds
        self._patience = patience
        # The key is a digest of the text, not the URL: two stores may have different texts at the same URL.
        self._cached: LruMemory[bytes, bytes] = LruMemory(_CACHE)

    def lines(self, text: str, links: StoreLinks, language: Language | None) -> list[str] | None:
        """Return ``highlighted_lines(text, links, language)``, or ``plain_lines(text, links)`` without a language.

        Returns None if that takes too long, if too many texts are in progress, or if no child can be started.
        """
        if language is None:
            return self._in_turn(partial(plain_lines, text, links))
        task = self._task(text, links, language)
        key = sha256(task).digest()
        lines = self._cached.get(key)
        if lines is None:
            lines = self._in_turn(partial(self._highlighted, key, task))
        return None if lines is None else lines.decode("utf-8", "surrogatepass").split("\n")

    def _highlighted(self, key: bytes, task: bytes) -> bytes | None:
        lines = self._cached.get(key)  # another request may have made them while this one waited
        if lines is None:
            lines = _run_child(task)
            if lines is not None:
                self._cached.put(key, lines, weight=len(lines))
        return lines

    def _task(self, text: str, links: StoreLinks, language: Language) -> bytes:
        """Return the input of the child."""
        return json.dumps(
            {
                "text": text,
                "store_dir": links.store_dir,
                "prefix": links.prefix,
                "language": language,
                "seconds": self._seconds,
            }
        ).encode()

    def _in_turn(self, make: Callable[[], T | None]) -> T | None:
        """Return the result of ``make``, or None if the turn of this thread does not come in time."""
        if not self._takes_slot():
            return None
        try:
            return make()
        finally:
            self._slots.release()

    def _takes_slot(self) -> bool:
        if self._slots.acquire(blocking=False):
            return True
        if not self._queue.acquire(blocking=False):
            return False
        try:
            return self._slots.acquire(timeout=self._patience)
        finally:
            self._queue.release()


def _run_child(task: bytes) -> bytes | None:
    try:
        return subprocess.run(
            [sys.executable, "-P", "-m", "api.view.source"],
            input=task,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            timeout=_WAIT,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
