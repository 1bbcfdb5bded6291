"""Read-ahead: a thread produces the next chunks while the caller works on the last ones.

Decompressing and writing take about the same time, and both release the interpreter's lock.
"""

import queue
import threading
from collections.abc import Iterator

from narcore.concurrency.closing import close

# With chunks of 256 KiB this bounds the memory to 1 MiB a stream.
QUEUE_LENGTH = 4


class ReadAhead(Iterator[bytes]):
    """The chunks of ``source``, read by a thread that starts with the first one, and closes it. Errors come in their place."""

    def __init__(self, source: Iterator[bytes]) -> None:
        self._source = source
        self._queue: queue.Queue[bytes | BaseException] = queue.Queue(QUEUE_LENGTH)
        self._thread: threading.Thread | None = None
        self._end: BaseException | None = None
        self._stop = False

    def __next__(self) -> bytes:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="readahead", daemon=True)
            self._thread.start()
        chunk = self._take()
        if chunk is None:
            raise self._end or StopIteration
        return chunk

    def _take(self) -> bytes | None:
        """The next chunk, or None once the end has come."""
        if self._end is None:
            item = self._queue.get()
            if isinstance(item, bytes):
                return item
            self._end = item
        return None

    def close(self) -> None:
        """Give up the rest. Waits for the chunk that is being read."""
        self._stop = True
        if self._thread is None:
            close(self._source)
            return
        while self._take() is not None:
            pass  # there is no more than a queue of them
        self._thread.join()

    def _run(self) -> None:
        end: BaseException = StopIteration()
        try:
            self._read()
        except BaseException as error:  # noqa: BLE001  it is raised where the chunks are read
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
