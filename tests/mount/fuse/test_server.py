"""The request loop on a socket instead of the device: packets in, packets out."""

import errno
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from narcore.errors import StoreUnavailable
from narmount.fuse import protocol
from narmount.fuse.fatalsignals import has_fatal_signal
from narmount.fuse.protocol import Agreed, Notify, Opcode
from narmount.fuse.server import FuseServer, Slow
from tests.mount.mounting import until

NEW, OLD = Agreed(45, False, True), Agreed(38, False, False)


class Kernel:
    """The kernel's side of the device."""

    def __init__(self) -> None:
        self.own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.own.settimeout(10)
        self.device = other.detach()

    def ask(self, opcode: int, unique: int, node_id: int = 1, body: bytes = b"", thread_id: int = 0) -> None:
        length = protocol.REQUEST.size + len(body)
        head = protocol.REQUEST.pack(length, opcode, unique, node_id, 0, 0, thread_id, 0, 0)
        self.own.send(head + body)

    def interrupt(self, unique: int) -> None:
        self.ask(Opcode.INTERRUPT, unique | 1, body=protocol.INTERRUPT.pack(unique))

    def answer(self) -> tuple[int, int, bytes]:
        """Return the number of the request, the errno, and the body."""
        packet = self.own.recv(1 << 20)
        length, error, unique = protocol.ANSWER.unpack_from(packet)
        assert length == len(packet)
        return unique, -error, packet[protocol.ANSWER.size :]

    def close(self) -> None:
        self.own.close()
        os.close(self.device)


class Files:
    """READLINK needs the work ``slow`` first, LOOKUP is answered immediately, OPEN is refused, and READ has a bug."""

    def __init__(self, slow: Callable[[], object] = lambda: None, progress: Callable[[], int] = lambda: 0) -> None:
        self.slow = slow
        self.progress = progress
        self.done: set[int] = set()
        self.works = 0
        self.forgotten: list[int] = []

    def answer(self, opcode: int, node_id: int, body: memoryview) -> bytes:
        if opcode == Opcode.LOOKUP:
            return b"found " + bytes(body)
        if opcode == Opcode.READLINK:
            if node_id not in self.done:
                raise Slow(("slow", node_id), lambda: self._work(node_id), self.progress)
            return b"target"
        if opcode == Opcode.READ:
            raise ZeroDivisionError("a bug")
        raise OSError(errno.ENOSYS, "not implemented")

    def _work(self, node_id: int) -> None:
        self.works += 1
        self.slow()
        self.done.add(node_id)

    def forget(self, node_ids: list[int]) -> None:
        self.forgotten += node_ids


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    kernel = Kernel()
    yield kernel
    kernel.close()


@contextmanager
def serving(
    kernel: Kernel, files: Files, agreed: Agreed = NEW, *, deadline: float = 10.0, resumed: bool = False
) -> Iterator[FuseServer]:
    server = FuseServer(kernel.device, files, agreed, deadline=deadline, resumed=resumed)
    thread = threading.Thread(target=server.serve)
    thread.start()
    yield server
    server.stop()
    thread.join(10)
    readers = [each for each in threading.enumerate() if each.name.startswith("reader-")]
    for _ in readers:
        kernel.ask(Opcode.STATFS, 2**40)  # a reader that still runs ends with the next request
    for each in (thread, *readers):
        each.join(10)
        assert not each.is_alive()


def test_requests_are_answered_refused_and_counted(kernel: Kernel) -> None:
    files = Files()
    with serving(kernel, files) as server:
        kernel.ask(Opcode.LOOKUP, 2, body=b"name\0")
        assert kernel.answer() == (2, 0, b"found name\0")
        kernel.ask(Opcode.OPEN, 4)
        assert kernel.answer() == (4, errno.ENOSYS, b"")
        kernel.ask(Opcode.READ, 6)
        assert kernel.answer() == (6, errno.EIO, b"")
        assert server.errors == 1
        kernel.ask(Opcode.FORGET, 8, 17, struct.pack("=Q", 1))
        kernel.ask(Opcode.BATCH_FORGET, 10, 0, struct.pack("=IIQQQQ", 2, 0, 5, 1, 6, 1))
        kernel.ask(Opcode.LOOKUP, 12)
        assert kernel.answer()[0] == 12
        until(lambda: sorted(files.forgotten) == [5, 6, 17])  # the other thread may have read them
        counts = server.counts()
        assert (counts["lookup"], counts["open"], counts["forget"], counts["batch_forget"]) == (2, 1, 1, 1)


def test_requests_that_wait_for_the_same_work_share_it(kernel: Kernel) -> None:
    go = threading.Event()
    files = Files(lambda: go.wait(10))
    with serving(kernel, files) as server:
        for unique in range(2, 42, 2):
            kernel.ask(Opcode.READLINK, unique, 9)
        until(lambda: server.waiting == 20)
        kernel.ask(Opcode.LOOKUP, 100)
        assert kernel.answer()[0] == 100  # a request for something else does not wait
        go.set()
        assert sorted(kernel.answer() for _ in range(20)) == [(unique, 0, b"target") for unique in range(2, 42, 2)]
        assert (files.works, server.waiting) == (1, 0)


def test_only_killed_processes_are_answered_early(kernel: Kernel) -> None:
    go = threading.Event()
    files = Files(lambda: go.wait(10))
    with serving(kernel, files) as server:
        kernel.ask(Opcode.READLINK, 2, 9)
        kernel.ask(Opcode.READLINK, 4, 9)
        until(lambda: server.waiting == 2)
        kernel.interrupt(2)
        assert kernel.answer() == (2, errno.EINTR, b"")
        kernel.interrupt(6)  # another thread may have read the request, but does not wait for its work yet
        until(lambda: server.interrupts == 2)
        kernel.ask(Opcode.READLINK, 6, 9)
        assert kernel.answer() == (6, errno.EINTR, b"")
        go.set()
        assert kernel.answer() == (4, 0, b"target")


def test_a_signal_that_does_not_end_the_process_changes_nothing(kernel: Kernel) -> None:
    go = threading.Event()
    files = Files(lambda: go.wait(10))
    ready = "import signal, time; signal.signal(signal.SIGUSR1, print); print(flush=True); time.sleep(60)"
    with (
        subprocess.Popen([sys.executable, "-c", ready], stdout=subprocess.PIPE) as process,
        serving(kernel, files) as server,
    ):
        assert process.stdout is not None
        process.stdout.readline()
        kernel.ask(Opcode.READLINK, 2, 9, thread_id=process.pid)
        until(lambda: server.waiting == 1)
        process.send_signal(signal.SIGUSR1)
        kernel.interrupt(2)
        kernel.ask(Opcode.LOOKUP, 4)
        assert kernel.answer()[0] == 4
        time.sleep(0.6)
        assert server.waiting == 1
        process.kill()
        assert kernel.answer() == (2, errno.EINTR, b"")
        go.set()


@contextmanager
def blocked_in_the_kernel(*, fatal: bool) -> Iterator[int]:
    """A process that has got a signal and can't act on it, since it is stopped."""
    # Background jobs and nohup ignore SIGQUIT, and the process would inherit that.
    program = (
        "import signal, time; signal.signal(signal.SIGUSR1, print); signal.signal(signal.SIGQUIT, signal.SIG_DFL);"
        "print(flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            process.send_signal(signal.SIGSTOP)
            os.waitpid(process.pid, os.WUNTRACED)
            process.send_signal(signal.SIGQUIT if fatal else signal.SIGUSR1)
            yield process.pid
        finally:
            process.kill()  # also ends a process that is stopped


@pytest.mark.parametrize("fatal", [False, True])
def test_only_fatal_signals_count(*, fatal: bool) -> None:
    with blocked_in_the_kernel(fatal=fatal) as pid:
        assert has_fatal_signal(pid) == fatal
    assert has_fatal_signal(pid)  # the process has ended
    assert has_fatal_signal(0)  # a process of another namespace


def test_a_failure_is_answered_to_all_requests_for_a_moment(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("narmount.fuse.server.FAILURE_SECONDS", 0.3)

    def fail() -> None:
        raise StoreUnavailable("down")

    files = Files(fail)
    with serving(kernel, files):
        kernel.ask(Opcode.READLINK, 2, 9)
        assert kernel.answer() == (2, errno.EIO, b"")
        kernel.ask(Opcode.READLINK, 4, 9)
        assert kernel.answer() == (4, errno.EIO, b"")
        assert files.works == 1
        time.sleep(0.35)
        files.slow = lambda: None
        kernel.ask(Opcode.READLINK, 6, 9)
        assert kernel.answer() == (6, 0, b"target")


def test_requests_fail_at_the_deadline_without_progress(kernel: Kernel) -> None:
    go, begun = threading.Event(), time.monotonic()

    def progress() -> int:
        return int((time.monotonic() - begun) / 0.2) if time.monotonic() - begun < 1.5 else 99

    files = Files(lambda: go.wait(10), progress)
    with serving(kernel, files, deadline=0.7):
        kernel.ask(Opcode.READLINK, 2, 9)
        assert kernel.answer() == (2, errno.EIO, b"")
        assert time.monotonic() - begun >= 2.1
        kernel.ask(Opcode.READLINK, 4, 9)
        assert kernel.answer() == (4, errno.EIO, b"")  # immediately
        go.set()
        until(lambda: 9 in files.done)
        kernel.ask(Opcode.READLINK, 6, 9)
        assert kernel.answer() == (6, 0, b"target")


def test_work_that_no_request_waits_for_is_not_begun(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("narmount.fuse.server.WORKERS", 1)
    go = threading.Event()
    files = Files(lambda: go.wait(10))
    with serving(kernel, files) as server:
        kernel.ask(Opcode.READLINK, 2, 8)
        until(lambda: files.works == 1)  # the other requests come later: two threads read requests, in no certain order
        for unique, node_id in ((4, 9), (6, 10)):
            kernel.ask(Opcode.READLINK, unique, node_id)
        until(lambda: server.waiting == 3)
        kernel.interrupt(4)
        assert kernel.answer() == (4, errno.EINTR, b"")
        go.set()
        assert sorted(kernel.answer() for _ in range(2)) == [(2, 0, b"target"), (6, 0, b"target")]
        assert files.done == {8, 10}
        kernel.ask(Opcode.READLINK, 12, 9)  # the work begins
        assert kernel.answer() == (12, 0, b"target")


def test_work_whose_result_is_lost_again_is_given_up(kernel: Kernel) -> None:
    files = Files()
    files.done = type("Never", (set,), {"add": lambda self, item: None})()
    with serving(kernel, files):
        kernel.ask(Opcode.READLINK, 2, 9)
        assert kernel.answer() == (2, errno.EIO, b"")
        assert files.works == 3


def test_a_new_worker_asks_for_the_unanswered_requests(kernel: Kernel) -> None:
    with serving(kernel, Files(), resumed=True):
        assert kernel.own.recv(100) == protocol.notification(Notify.RESEND)
        kernel.ask(Opcode.LOOKUP, 2 | 1 << 63)
        assert kernel.answer() == (2 | 1 << 63, 0, b"found ")


@pytest.mark.parametrize(("agreed", "sent"), [(NEW, [Notify.PRUNE, Notify.INVAL_INODE]), (OLD, [Notify.INVAL_INODE])])
def test_a_notification_that_the_kernel_does_not_know_is_not_sent(
    kernel: Kernel, agreed: Agreed, sent: list[Notify]
) -> None:
    server = FuseServer(kernel.device, Files(), agreed, deadline=10.0)
    server.notify(Notify.PRUNE, protocol.prune([5]))
    server.notify(Notify.INVAL_INODE, protocol.INVAL_INODE.pack(5, 0, -1))
    assert [-kernel.answer()[1] for _ in sent] == sent


def test_killed_processes_of_an_earlier_worker_are_answered_if_requests_are_not_sent_again(kernel: Kernel) -> None:
    with serving(kernel, Files(), OLD, resumed=True):
        kernel.ask(Opcode.LOOKUP, 100)
        assert kernel.answer()[0] == 100
        kernel.interrupt(50)  # read by the earlier worker
        assert kernel.answer() == (50, errno.EINTR, b"")
        kernel.interrupt(102)  # read by this worker
        kernel.ask(Opcode.LOOKUP, 104)
        assert kernel.answer()[0] == 104
