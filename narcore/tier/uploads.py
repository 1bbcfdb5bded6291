"""``TierUploads``: adds verified NARs to the tier in the background."""

import logging
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

from narcore.concurrency.closing import close
from narcore.concurrency.lru import LruMemory
from narcore.errors import NarcoreError
from narcore.lookup.pathinfo import PathInfo
from narcore.tier.reader import SMALL_NAR
from narcore.tier.writer import TierWriter

log = logging.getLogger("narcore.tier")

# How many NARs can wait for their upload. Further NARs are not added to the tier until they are fetched again, because uploads must
# not delay answers or use unlimited memory.
QUEUE_MAX = 100

# This process does not try to add a path again for this time after the path was queued, even if the upload failed.
DONE_SECONDS = 600.0

# How long a process that exits waits for the running upload to end.
STOP_SECONDS = 2.0

OpenCached = Callable[[PathInfo], Iterable[bytes] | None]


class Stopped(NarcoreError):
    """The upload was given up: the process exits, or the NAR is not in the cache any more."""


class TierUploads:
    """A queue of NARs, and one thread that adds them to the tier. The thread starts with the first NAR. Thread-safe.

    There is only one thread, because packing a NAR uses up to one core, and the other cores must answer requests.
    """

    def __init__(self, writer: TierWriter) -> None:
        self._writer = writer
        self._queue: queue.Queue[tuple[PathInfo, OpenCached] | None] = queue.Queue(QUEUE_MAX)  # None: stop
        self._done: LruMemory[str, bool] = LruMemory(10_000)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopping = False

    def offer(self, info: PathInfo, open_cached: OpenCached) -> None:
        """Queue the path for an upload, and return immediately.

        ``open_cached`` returns the NAR, which is closed after use, or None if the NAR is not cached any more. The path is not
        queued if the narinfo was not verified, the NAR is too small for the tier, the path was queued recently, or the queue is
        full.
        """
        name = info.narinfo.store_path.base_name
        if not info.trust.is_verified or info.narinfo.nar_size <= SMALL_NAR or self._done.get(name):
            return
        try:
            self._queue.put_nowait((info, open_cached))
        except queue.Full:
            log.warning(
                "tier %s: %d NARs wait for their upload; not adding %s", self._writer.writer.url, QUEUE_MAX, name
            )
            return
        self._done.put(name, True, seconds=DONE_SECONDS)
        self._start()

    def close(self) -> None:
        """Stop the thread. A running upload stops before its next chunk, and the incomplete NAR is not stored."""
        self._stopping = True
        with suppress(queue.Full):  # then the thread sees _stopping after the current upload
            self._queue.put_nowait(None)
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)
        self._writer.close()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and not self._stopping:
                self._thread = threading.Thread(target=self._run, name="tier-uploads", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while (offered := self._queue.get()) is not None and not self._stopping:
            self._add(*offered)

    def _add(self, info: PathInfo, open_cached: OpenCached) -> None:
        name, url = info.narinfo.store_path.base_name, self._writer.writer.url
        try:
            if self._writer.add(info, lambda: self._chunks(info, open_cached)):
                log.info("tier %s: added %s", url, name)
        except Stopped:
            return
        except NarcoreError as error:
            log.warning("tier %s: can't add %s: %s; the stores serve it", url, name, error)

    def _chunks(self, info: PathInfo, open_cached: OpenCached) -> Iterator[bytes]:
        chunks = open_cached(info)
        if chunks is None:
            raise Stopped("the NAR is not cached any more")
        try:
            for chunk in chunks:
                if self._stopping:
                    raise Stopped("the process exits")
                yield chunk
        finally:
            close(chunks)
