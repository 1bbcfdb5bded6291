"""Requests off the device, and answers to it.

What can be answered out of memory or off the disk is answered on the thread that reads the device. What has to wait for a store
raises `Slow`: the work is done once, on another thread, however many wait for it, and then each of the requests is tried again.
Nobody waits for ever: when no progress was seen for the deadline, those who wait get EIO, and the work goes on without them.

A process that is killed while it waits is let go at once (FUSE_INTERRUPT); work that was begun goes on. Any other signal waits
until the request has been answered.

All threads read the same descriptor, never a clone of it: what was read from a clone is lost when the clone is closed, and so could
not be sent again (FUSE_NOTIFY_RESEND) to the worker that takes the place of one that died.
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

READERS = 2  # one reads the device while another waits for the disk; more of them only wait for the interpreter's lock
WORKERS = 64  # of each kind of work, such as looking names up; the downloads among it are bounded by NAR_MAX_FILLS
TRIES = 3  # what was just fetched may be evicted before it is used
SWEEP_SECONDS = 0.25

# After a failure the same is not tried again for so long. The kernel asks again at once when reading ahead has failed, and a
# process that gets EIO often does.
FAILURE_SECONDS = 1.0
FAILURES_MAX = 10_000

AHEAD_MAX = 1000  # far more than there are threads that could be about to have a request wait


# The rest is for the file system. Looked up by number: this is asked for each request, and an enum's member takes its time.
_OURS = frozenset(map(int, (Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT, Opcode.DESTROY)))

_NAMES = {opcode.value: opcode.name.lower() for opcode in Opcode}

Key = tuple[object, ...]


class Slow(Exception):
    """``work`` has to be done before the request can be answered; ``progress`` is a number that changes while it gets on.

    The ``key`` says what is done, and on what: it is for the log, too. Each kind of work has threads of its own: however many
    look-ups hang, what is on disk is read.
    """

    def __init__(self, key: Key, work: Callable[[], None], progress: Callable[[], int] = lambda: 0) -> None:
        super().__init__(" ".join(map(str, key)))
        self.key = key
        self.work = work
        self.progress = progress


class Operations(Protocol):
    """What a file system answers: the body. Raises OSError with an errno, or Slow."""

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
    moved: float
    seen: int = 0
    waiting: dict[int, _Waiting] = field(default_factory=dict)


class FuseServer:
    """Serves one connection, from one process. ``resumed``: another worker has served it before."""

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
        self._interrupted: set[int] = set()  # of those that wait: got a signal, which may be followed by a deadly one
        self._ahead: OrderedDict[int, None] = OrderedDict()  # interrupts read before the request was seen to wait
        self._failed: dict[Key, float] = {}
        self._first_unique: int | None = None
        self._pools: dict[object, ThreadPoolExecutor] = {}
        self._ended = threading.Event()
        self._draining = False
        self._counts: list[Counter[int]] = []
        self.interrupts = 0
        self.errors = 0
        self.last_error: dict[str, object] | None = None

    # --- from outside

    def serve(self) -> None:
        """Until the file system is unmounted, or this worker has been told to stop."""
        if self._resumed and self._agreed.resend:
            self.notify(Notify.RESEND)
        for number in range(READERS):
            threading.Thread(target=self._read_requests, name=f"reader-{number}", daemon=True).start()
        while not self._ended.wait(SWEEP_SECONDS):
            self._sweep()

    def stop(self) -> None:
        """Take no new requests, answer those that wait, and end: for a successor, which sees none of ours.

        Where requests can be sent again, nothing needs to be waited for.
        """
        self._draining = True
        if self._agreed.resend:
            self._ended.set()

    def notify(self, code: Notify, body: bytes = b"") -> None:
        """Send the kernel a notification, unless the kernel does not know this one."""
        if code == Notify.PRUNE and not self._agreed.prune:
            return
        try:
            os.write(self._fd, protocol.notification(code, body))
        except OSError as error:
            # ENOENT: the kernel does not know that node or name (any more), and so has nothing to drop.
            if error.errno not in (errno.ENOENT, errno.ENODEV, errno.ENOTDIR):
                log.warning("notifying the kernel (%s) failed: %s", code.name, error.strerror)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def counts(self) -> dict[str, int]:
        """Requests so far, by the names of their opcodes."""
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
                self._take(opcode, unique, node_id, thread_id, view[protocol.REQUEST.size : size])
        except BaseException:
            log.exception("a thread that reads requests has ended")
            raise
        finally:
            if not self._draining:
                self._ended.set()

    def _read(self, buffers: list[bytearray]) -> int | None:
        """None when there is no more to come."""
        while True:
            try:
                return os.readv(self._fd, buffers)
            except OSError as error:
                # Unmounted; or ended by way of /sys/fs/fuse/connections.
                if error.errno in (errno.ENODEV, errno.ECONNABORTED):
                    return None
                if error.errno not in (errno.EINTR, errno.ENOENT, errno.EAGAIN):  # interrupted before it was read
                    raise

    def _take(self, opcode: int, unique: int, node_id: int, thread_id: int, body: memoryview) -> None:
        if self._first_unique is None:
            self._first_unique = unique
        if opcode not in _OURS:
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
            log.warning("%s: what is fetched is gone again before it can be used", slow)
            self._refuse(unique, errno.EIO)
        except OSError as error:
            self._refuse(unique, error.errno or errno.EIO)
        except Exception:
            log.exception("a request (opcode %d) could not be answered", opcode)
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
            if error.errno not in (errno.ENOENT, errno.ENODEV):  # nobody waits for it any more
                raise

    # --- what takes long

    def _defer(self, slow: Slow, waiting: _Waiting) -> None:
        with self._lock:
            if self._failed.get(slow.key, 0.0) > self._clock():
                failed, begun = True, False
            else:
                failed, begun = False, slow.key not in self._jobs
                job = self._jobs.setdefault(slow.key, _Job(slow, waiting.since))
                job.waiting[waiting.unique] = waiting
                self._waiting[waiting.unique] = slow.key
                if waiting.unique in self._ahead:
                    del self._ahead[waiting.unique]
                    self._interrupted.add(waiting.unique)  # which the next sweep looks at
        if failed:
            self._refuse(waiting.unique, errno.EIO)
        elif begun:
            self._pool(slow.key[0]).submit(self._work, slow)

    def _pool(self, kind: object) -> ThreadPoolExecutor:
        with self._lock:
            if kind not in self._pools:
                self._pools[kind] = ThreadPoolExecutor(WORKERS, thread_name_prefix=str(kind))
            return self._pools[kind]

    def _work(self, slow: Slow) -> None:
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
                self._retry(waiting)

    def _report(self, slow: Slow, why: str) -> None:
        """To the log, and for who asks what has failed: a process is told no more than "Input/output error"."""
        text = f"{slow}: {why}"
        log.warning("%s", text)
        self.last_error = {"at": time.time(), "text": text}

    def _is_abandoned(self, key: Key) -> bool:
        """Whether all who waited were killed or have given up before it was begun: those who still wait get its turn."""
        with self._lock:
            abandoned = not self._jobs[key].waiting
            if abandoned:
                del self._jobs[key]
            return abandoned

    def _retry(self, waiting: _Waiting) -> None:
        unique, thread_id, body = waiting.unique, waiting.thread_id, memoryview(waiting.body)
        self._handle(waiting.opcode, unique, waiting.node_id, thread_id, body, waiting.tries + 1)

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
        """The kernel does not tell again, unless it is asked to (EAGAIN), and then it does so at once, and again and again."""
        self.interrupts += 1
        if self._is_lost(unique):
            self._send(unique, errno.EINTR)
            return
        with self._lock:
            known = unique in self._waiting
            if known:
                self._interrupted.add(unique)
            else:  # another thread has just read it, and may be about to have it wait; or it was answered
                self._ahead[unique] = None
                if len(self._ahead) > AHEAD_MAX:
                    self._ahead.popitem(last=False)
        if known:
            self._answer_killed()

    def _answer_killed(self) -> None:
        with self._lock:
            self._interrupted &= self._waiting.keys()
            waiting = [self._jobs[self._waiting[unique]].waiting[unique] for unique in self._interrupted]
        for each in waiting:
            if has_fatal_signal(each.thread_id) and self._forget(each.unique):
                self._send(each.unique, errno.EINTR)

    def _forget(self, unique: int) -> bool:
        """Whether it was still waiting."""
        with self._lock:
            key = self._waiting.pop(unique, None)
            if key is None:
                return False
            del self._jobs[key].waiting[unique]
            return True

    def _is_lost(self, unique: int) -> bool:
        """Whether a worker before us has read it, and it can't be sent again: then we are the one to let its process go."""
        return self._resumed and not self._agreed.resend and unique < (self._first_unique or 0)

    def _sweep(self) -> None:
        now = self._clock()
        overdue: list[_Waiting] = []
        with self._lock:
            for key, job in self._jobs.items():
                seen = job.slow.progress()
                if seen != job.seen:
                    job.seen, job.moved = seen, now
                late = [each for each in job.waiting.values() if now - max(each.since, job.moved) > self._deadline]
                for waiting in late:
                    del job.waiting[waiting.unique]
                    self._waiting.pop(waiting.unique, None)
                if late:
                    self._report(job.slow, f"nothing has come for {self._deadline:g} s")
                    self._remember(key, failed=True)
                overdue += late
            done = self._draining and not self._jobs
        for waiting in overdue:
            self._refuse(waiting.unique, errno.EIO)
        if self._interrupted:
            self._answer_killed()
        if done:
            self._ended.set()
