"""Read-ahead: a thread produces the next chunks while the caller works on the previous ones.

Decompressing and writing take about the same time, and both release the interpreter's lock.
"""

import queue
import threading
from collections.abc import Iterator

from narcore.concurrency.background import BackgroundThread
from narcore.concurrency.closing import close

# With chunks of 256 KiB this limits the memory to 1 MiB per stream.
QUEUE_LENGTH = 4


class ReadAhead(Iterator[bytes]):
    """The chunks of ``source``, read by a thread that starts at the first read and closes the source at the end.

    If the source raises an error, the error is raised after the chunks that preceded it.
    """

    def __init__(self, source: Iterator[bytes]) -> None:
        self._source = source
        self._queue: queue.Queue[bytes | BaseException] = queue.Queue(QUEUE_LENGTH)
        self._thread: threading.Thread | None = None
        self._next: bytes | BaseException | None = None  # taken from the queue by ``is_ready``
        self._end: BaseException | None = None
        self._stop = False

    def is_ready(self, seconds: float) -> bool:
        """Wait at most ``seconds`` for the next chunk or the end; return True if ``next`` will not block."""
        self._start()
        if self._next is None and self._end is None:
            try:
                self._next = self._queue.get(timeout=seconds)
            except queue.Empty:
                return False
        return True

    def __next__(self) -> bytes:
        self._start()
        chunk = self._take()
        if chunk is None:
            raise self._end or StopIteration
        return chunk

    def _start(self) -> None:
        if self._thread is None:
            self._thread = BackgroundThread(self._run, name="readahead")
            self._thread.start()

    def _take(self) -> bytes | None:
        """Return the next chunk; None at the end."""
        if self._end is None:
            item, self._next = self._queue.get() if self._next is None else self._next, None
            if isinstance(item, bytes):
                return item
            self._end = item
        return None

    def close(self) -> None:
        """Abandon the remaining chunks. Waits for the chunk that is being read."""
        self._stop = True
        if self._thread is None:
            close(self._source)
            return
        while self._take() is not None:
            pass  # discards the chunks in the queue, which has a limit
        self._thread.join()

    def _run(self) -> None:
        end: BaseException = StopIteration()
        try:
            self._read()
        except BaseException as error:  # noqa: BLE001  raised again in the thread that reads the chunks
            end = error
        self._queue.put(end)

    def _read(self) -> None:
        try:
            for chunk in self._source:
                self._queue.put(chunk)
                if self._stop:
                    return
        finally:
            close(self._source)
