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
from hashlib import sha256

from api.view.source import Language, plain_lines
from api.view.storelinks import StoreLinks
from narcore.concurrency.lru import LruMemory

SECONDS = 2.0

# A child that waits for a processor uses no CPU time. This limits the time that a request waits for it, in seconds.
_WAIT = 8.0

# Bytes of results per process. A page of 128 KiB becomes about 0.5 MB of HTML.
_CACHE = 32 << 20


class Highlighter:
    """Makes the lines of at most ``threads`` / 4 texts at once, so that most threads of a server are free for other requests.

    ``seconds`` is the CPU time of a child. Thread-safe.
    """

    def __init__(self, threads: int, *, seconds: float = SECONDS) -> None:
        self._slots = threading.BoundedSemaphore(max(1, threads // 4))
        self._seconds = seconds
        # The key is a digest of the text, not the URL: two stores may have different texts at the same URL.
        self._cached: LruMemory[bytes, bytes] = LruMemory(_CACHE)

    def lines(self, text: str, links: StoreLinks, language: Language | None) -> list[str] | None:
        """Return ``highlighted_lines(text, links, language)``, or ``plain_lines(text, links)`` without a language.

        Returns None if that takes too long, if too many texts are in progress, or if no child can be started.
        """
        if not self._slots.acquire(blocking=False):  # a request that waits would occupy a thread
            return None
        try:
            return plain_lines(text, links) if language is None else self._highlighted_lines(text, links, language)
        finally:
            self._slots.release()

    def _highlighted_lines(self, text: str, links: StoreLinks, language: Language) -> list[str] | None:
        task = json.dumps(
            {
                "text": text,
                "store_dir": links.store_dir,
                "prefix": links.prefix,
                "language": language,
                "seconds": self._seconds,
            }
        ).encode()
        key = sha256(task).digest()
        lines = self._cached.get(key)
        if lines is None:
            lines = _run_child(task)
            if lines is None:
                return None
            self._cached.put(key, lines, weight=len(lines))
        return lines.decode("utf-8", "surrogatepass").split("\n")


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
