"""SHA-256 in a thread of its own.

Hashing takes about as long as decompressing zstd. Both release the interpreter's lock, so both run in
parallel if hashing has its own thread.
"""

import hashlib
import queue

from narcore.concurrency.background import BackgroundThread

# At most this many chunks wait for the hashing thread. With chunks of 256 KiB this limits the memory to 2 MiB per stream.
QUEUE_LENGTH = 8


class BackgroundSha256:
    """A hasher like hashlib's. Its thread starts at the first ``update`` and ends with ``digest`` or ``close``."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._queue: queue.Queue[bytes | None] = queue.Queue(QUEUE_LENGTH)
        self._thread: BackgroundThread | None = None

    def update(self, data: bytes) -> None:
        if self._thread is None:
            self._thread = BackgroundThread(self._run, name="sha256")
            self._thread.start()
        self._queue.put(data)

    def digest(self) -> bytes:
        """Return the digest of all data passed to ``update``. Waits for the thread."""
        self.close()
        return self._sha256.digest()

    def close(self) -> None:
        """End the thread. Required if the stream is abandoned, so that no thread is left."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while (data := self._queue.get()) is not None:
            self._sha256.update(data)
