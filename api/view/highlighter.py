"""Highlights source text within a limit of CPU time, in a process of its own.

Some lexers need minutes of CPU time for a small hostile text. In CPython, a regular expression blocks all threads of the process
and can't be interrupted. Therefore a child process highlights each text, and the threads of this process keep running. The kernel
ends the child when it has used its limit of CPU time. A child takes a tenth of a second to start, so the results are cached.
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

# How long a request waits for its child, in seconds. The limit of CPU time does not end a child that waits for a processor.
_WAIT = 8.0

# How long a request waits for a free child, in seconds. Most texts are highlighted in a tenth of this time.
PATIENCE = 1.0

# Bytes of results per process. A page of 128 KiB becomes about 0.5 MB of HTML.
_CACHE = 32 << 20

T = TypeVar("T")


class Highlighter:
    """Makes the lines of at most ``threads`` / 4 texts at the same time. At most ``threads`` / 4 further requests wait.

    At least half of the threads of a server therefore remain free for other requests. ``seconds`` is the limit of CPU time of a
    child. ``patience`` is how many seconds a request waits for other texts to be finished. Thread-safe.
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
        lines = self._cached.get(key)  # while this request waited, another request may have made the same lines
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
        """Wait until fewer than the maximum number of texts are in progress, then call ``make``. Returns None after a timeout."""
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
