"""SHA-256 in a thread of its own.

Hashing takes about as long as decompressing zstd does; both release the interpreter's lock, so a thread that only hashes
makes them run at the same time.
"""

import hashlib
import queue
import threading

# Chunks on the way to the hashing thread. With chunks of 256 KiB this bounds the memory to 2 MiB a stream.
QUEUE_LENGTH = 8


class BackgroundSha256:
    """``update`` and ``digest`` as hashlib's. The thread is started at the first update and ends with ``digest`` or ``close``."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._queue: queue.Queue[bytes | None] = queue.Queue(QUEUE_LENGTH)
        self._thread: threading.Thread | None = None

    def update(self, data: bytes) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="sha256", daemon=True)
            self._thread.start()
        self._queue.put(data)

    def digest(self) -> bytes:
        """The digest of all that was given to ``update``; waits for the thread."""
        self.close()
        return self._sha256.digest()

    def close(self) -> None:
        """End the thread; a stream that is given up must not leave one behind."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while (data := self._queue.get()) is not None:
            self._sha256.update(data)
