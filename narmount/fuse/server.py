"""The request loop: reads requests from the device and writes the answers.

The thread that reads a request answers it if the answer needs only memory or the disk. If it needs a store, `Slow` is raised: other
threads do the work, once for all requests that wait for it, and then each of these requests is tried again. If the work makes
no progress for ``deadline`` seconds, the waiting requests get EIO, and the work continues.

A process that is killed while it waits gets its answer immediately (FUSE_INTERRUPT), and the work continues. Other signals have no
effect before the request has been answered.

When a worker dies, the kernel sends its unanswered requests again to the next worker (FUSE_NOTIFY_RESEND). But requests that were
read from a clone of the descriptor are lost when the clone is closed. So all threads read the same descriptor, never a clone.
"""

import errno
import logging
import os
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from narcore.errors import NarcoreError
from narmount.fuse import protocol
from narmount.fuse.fatalsignals import has_fatal_signal
from narmount.fuse.protocol import Agreed, Notify, Opcode

log = logging.getLogger("narmount")

READERS = 2  # one thread reads the device while the other waits for the disk; more threads would only wait for the GIL
WORKERS = 64  # threads for each kind of work, such as lookups; NAR_MAX_FILLS limits the downloads among them
TRIES = 3  # a NAR may be evicted between its fetch and the next try
SWEEP_SECONDS = 0.25

# Work that has failed is not tried again for this long. The kernel repeats a failed read-ahead immediately, and so do many
# processes that get EIO.
FAILURE_SECONDS = 1.0
FAILURES_MAX = 10_000

EARLY_INTERRUPTS_MAX = 1000  # far more than the requests that READERS threads can handle at once

# Opcodes that are not for the file system. They are plain numbers: every request is compared with them, and enum members are slow.
_INTERNAL = frozenset(map(int, (Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT, Opcode.DESTROY)))

_NAMES = {opcode.value: opcode.name.lower() for opcode in Opcode}

Key = tuple[object, ...]


class Slow(Exception):
    """Raised by a file system if ``work`` has to be done before a request can be answered.

    ``progress`` returns a number that changes while the work makes progress. ``key`` is the kind of work and its object, and
    appears in the log. Each kind of work has its own threads, so that lookups that hang don't block reads of the disk.
    """

    def __init__(self, key: Key, work: Callable[[], None], progress: Callable[[], int] = lambda: 0) -> None:
        super().__init__(" ".join(map(str, key)))
        self.key = key
        self.work = work
        self.progress = progress


class Operations(Protocol):
    """The interface of a file system. ``answer`` returns the body of the answer. It raises OSError with an errno, or Slow."""

    def answer(self, opcode: int, node_id: int, body: memoryview) -> bytes: ...

    def forget(self, node_ids: list[int]) -> None: ...


@dataclass(slots=True)
class _Waiting:
    unique: int
    thread_id: int
    opcode: int
    node_id: int
    body: bytes
    tries: int
    since: float


@dataclass(slots=True)
class _Job:
    slow: Slow
    changed: float  # when ``progress`` last changed, by time.monotonic()
    progress: int = 0
    waiting: dict[int, _Waiting] = field(default_factory=dict)


class FuseServer:
    """Serves one connection in one process.

    ``deadline`` is in seconds. ``resumed`` is True if another worker has served the connection before.
    """

    def __init__(
        self,
        fd: int,
        operations: Operations,
        agreed: Agreed,
        *,
        deadline: float,
        resumed: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fd = fd
        self._operations = operations
        self._agreed = agreed
        self._deadline = deadline
        self._resumed = resumed
        self._clock = clock
        self._lock = threading.Lock()
        self._jobs: dict[Key, _Job] = {}
        self._waiting: dict[int, Key] = {}
        self._interrupted: set[int] = set()  # waiting requests whose process got a signal; a fatal signal may follow
        # requests that were not waiting yet when their process got a signal
        self._early_interrupts: OrderedDict[int, None] = OrderedDict()
        self._failed: dict[Key, float] = {}
        self._first_unique: int | None = None
        self._pools: dict[object, ThreadPoolExecutor] = {}
        self._ended = threading.Event()
        self._draining = False
        self._counts: list[Counter[int]] = []
        self.interrupts = 0
        self.errors = 0
        self.last_error: dict[str, object] | None = None

    # --- for the worker

    def serve(self) -> None:
        """Answer requests until the file system is unmounted or `stop` is called."""
        if self._resumed and self._agreed.resend:
            self.notify(Notify.RESEND)
        for number in range(READERS):
            threading.Thread(target=self._read_requests, name=f"reader-{number}", daemon=True).start()
        while not self._ended.wait(SWEEP_SECONDS):
            self._sweep()

    def stop(self) -> None:
        """End `serve`, so that the next worker takes over.

        If the kernel can send requests again, the next worker answers the unanswered ones. Otherwise this worker first
        answers all requests that it has read.
        """
        self._draining = True
        if self._agreed.resend:
            self._ended.set()

    def notify(self, code: Notify, body: bytes = b"") -> None:
        """Send the kernel a notification. Does nothing if the kernel does not support the notification."""
        if code == Notify.PRUNE and not self._agreed.prune:
            return
        try:
            os.write(self._fd, protocol.notification(code, body))
        except OSError as error:
            # ENOENT: the kernel does not know the node, so it has nothing to drop.
            if error.errno not in (errno.ENOENT, errno.ENODEV, errno.ENOTDIR):
                log.warning("could not notify the kernel (%s): %s", code.name, error.strerror)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def counts(self) -> dict[str, int]:
        """Return the number of requests so far by the name of their opcode."""
        found: Counter[str] = Counter()
        for counter in self._counts:
            for opcode, count in counter.copy().items():
                found[_NAMES.get(opcode, "other")] += count
        return dict(sorted(found.items()))

    # --- reading

    def _read_requests(self) -> None:
        counts: Counter[int] = Counter()
        self._counts.append(counts)
        buffer = bytearray(protocol.BUFFER_SIZE)
        view, buffers = memoryview(buffer), [buffer]
        try:
            while not self._draining:
                size = self._read(buffers)
                if size is None:
                    break
                _, opcode, unique, node_id, _, _, thread_id, *_ = protocol.REQUEST.unpack_from(buffer)
                counts[opcode] += 1
                self._dispatch(opcode, unique, node_id, thread_id, view[protocol.REQUEST.size : size])
        except BaseException:
            log.exception("a thread that reads requests has failed; the worker ends")
            raise
        finally:
            if not self._draining:
                self._ended.set()

    def _read(self, buffers: list[bytearray]) -> int | None:
        """Read a request into the buffers. Returns its size, or None at the end of the connection."""
        while True:
            try:
                return os.readv(self._fd, buffers)
            except OSError as error:
                # The file system was unmounted, or the connection was aborted through /sys/fs/fuse/connections.
                if error.errno in (errno.ENODEV, errno.ECONNABORTED):
                    return None
                # The request was interrupted before it was read.
                if error.errno not in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                    raise

    def _dispatch(self, opcode: int, unique: int, node_id: int, thread_id: int, body: memoryview) -> None:
        if self._first_unique is None:
            self._first_unique = unique
        if opcode not in _INTERNAL:
            self._handle(opcode, unique, node_id, thread_id, body, 0)
        elif opcode == Opcode.INTERRUPT:
            self._interrupt(protocol.INTERRUPT.unpack_from(body)[0])
        elif opcode == Opcode.DESTROY:
            self._send(unique, 0)
        else:
            self._operations.forget(protocol.forgotten(opcode, node_id, bytes(body)))

    def _handle(self, opcode: int, unique: int, node_id: int, thread_id: int, body: memoryview, tries: int) -> None:
        try:
            found = self._operations.answer(opcode, node_id, body)
        except Slow as slow:
            if tries < TRIES:
                self._defer(slow, _Waiting(unique, thread_id, opcode, node_id, bytes(body), tries, self._clock()))
                return
            log.warning("%s: evicted before it could be read, %d times in a row; answering EIO", slow, TRIES)
            self._refuse(unique, errno.EIO)
        except OSError as error:
            self._refuse(unique, error.errno or errno.EIO)
        except Exception:
            log.exception("could not answer a request (opcode %d)", opcode)
            self._refuse(unique, errno.EIO)
        else:
            self._send(unique, 0, found)

    def _refuse(self, unique: int, number: int) -> None:
        if number == errno.EIO:
            self.errors += 1
        self._send(unique, number)

    def _send(self, unique: int, number: int, body: bytes = b"") -> None:
        try:
            os.writev(self._fd, (protocol.answer(unique, number, len(body)), body))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):  # the request was aborted, or the mount has ended
                raise

    # --- work that takes long

    def _defer(self, slow: Slow, waiting: _Waiting) -> None:
        with self._lock:
            failed = self._failed.get(slow.key, 0.0) > self._clock()
            begins = not failed and slow.key not in self._jobs
            if not failed:
                job = self._jobs.setdefault(slow.key, _Job(slow, waiting.since))
                job.waiting[waiting.unique] = waiting
                self._waiting[waiting.unique] = slow.key
                if waiting.unique in self._early_interrupts:
                    del self._early_interrupts[waiting.unique]
                    self._interrupted.add(waiting.unique)  # the next sweep checks the signal
        if failed:
            self._refuse(waiting.unique, errno.EIO)
        elif begins:
            self._pool(slow.key[0]).submit(self._do_work, slow)

    def _pool(self, kind: object) -> ThreadPoolExecutor:
        with self._lock:
            if kind not in self._pools:
                self._pools[kind] = ThreadPoolExecutor(WORKERS, thread_name_prefix=str(kind))
            return self._pools[kind]

    def _do_work(self, slow: Slow) -> None:
        if self._is_abandoned(slow.key):
            return
        failure = 0
        try:
            slow.work()
        except OSError as error:
            failure = error.errno if error.errno in (errno.ESTALE, errno.ENFILE) else errno.EIO
            self._report(slow, error.strerror or str(error))
        except NarcoreError as error:
            failure = errno.EIO
            self._report(slow, str(error))
        except Exception:
            failure = errno.EIO
            log.exception("%s", slow)
        for waiting in self._end_job(slow.key, failed=bool(failure)):
            if failure:
                self._refuse(waiting.unique, failure)
            else:
                opcode, body = waiting.opcode, memoryview(waiting.body)
                self._handle(opcode, waiting.unique, waiting.node_id, waiting.thread_id, body, waiting.tries + 1)

    def _report(self, slow: Slow, why: str) -> None:
        """Log a failure, and keep it for --status: the process that reads only gets "Input/output error"."""
        text = f"{slow}: {why}"
        log.warning("%s", text)
        self.last_error = {"at": time.time(), "text": text}

    def _is_abandoned(self, key: Key) -> bool:
        """Drop work that has not begun, if no request waits for it any more. Returns whether the work was dropped."""
        with self._lock:
            abandoned = not self._jobs[key].waiting
            if abandoned:
                del self._jobs[key]
            return abandoned

    def _end_job(self, key: Key, *, failed: bool) -> list[_Waiting]:
        with self._lock:
            self._remember(key, failed=failed)
            job = self._jobs.pop(key)
            for unique in job.waiting:
                self._waiting.pop(unique, None)
            return list(job.waiting.values())

    def _remember(self, key: Key, *, failed: bool) -> None:
        self._failed.pop(key, None)
        if failed:
            if len(self._failed) >= FAILURES_MAX:
                del self._failed[next(iter(self._failed))]
            self._failed[key] = self._clock() + FAILURE_SECONDS

    def _interrupt(self, unique: int) -> None:
        """Handle a signal to the process that waits for a request (FUSE_INTERRUPT).

        The kernel reports each signal once. It would repeat a report that is answered with EAGAIN, but immediately and in a loop.
        """
        self.interrupts += 1
        if self._is_lost(unique):
            self._send(unique, errno.EINTR)
            return
        with self._lock:
            is_waiting = unique in self._waiting
            if is_waiting:
                self._interrupted.add(unique)
            else:  # the request was answered, or another thread has just read it and may call _defer next
                self._early_interrupts[unique] = None
                if len(self._early_interrupts) > EARLY_INTERRUPTS_MAX:
                    self._early_interrupts.popitem(last=False)
        if is_waiting:
            self._answer_killed()

    def _answer_killed(self) -> None:
        """Answer the waiting requests of processes that are being killed."""
        with self._lock:
            self._interrupted &= self._waiting.keys()
            waiting = [self._jobs[self._waiting[unique]].waiting[unique] for unique in self._interrupted]
        for each in waiting:
            if has_fatal_signal(each.thread_id) and self._forget(each.unique):
                self._send(each.unique, errno.EINTR)

    def _forget(self, unique: int) -> bool:
        """Stop waiting for a request. Returns whether it was waiting."""
        with self._lock:
            key = self._waiting.pop(unique, None)
            if key is None:
                return False
            del self._jobs[key].waiting[unique]
            return True

    def _is_lost(self, unique: int) -> bool:
        """Return whether an earlier worker read the request and the kernel can't send it again. Then no other thread answers it."""
        return self._resumed and not self._agreed.resend and unique < (self._first_unique or 0)

    def _sweep(self) -> None:
        """Answer the requests that have waited too long, and those of killed processes."""
        now = self._clock()
        overdue: list[_Waiting] = []
        with self._lock:
            for key, job in self._jobs.items():
                progress = job.slow.progress()
                if progress != job.progress:
                    job.progress, job.changed = progress, now
                late = [each for each in job.waiting.values() if now - max(each.since, job.changed) > self._deadline]
                for waiting in late:
                    del job.waiting[waiting.unique]
                    self._waiting.pop(waiting.unique, None)
                if late:
                    self._report(job.slow, f"no progress for {self._deadline:g} s")
                    self._remember(key, failed=True)
                overdue += late
            done = self._draining and not self._jobs
        for waiting in overdue:
            self._refuse(waiting.unique, errno.EIO)
        if self._interrupted:
            self._answer_killed()
        if done:
            self._ended.set()
