"""The process that holds a mount. It opens /dev/fuse and keeps it open, and does little else, so that it rarely fails.

A mount lasts as long as a process has its device open. If the worker, which answers requests, crashes or is killed or replaced, the
holder starts another worker, which inherits the device. Meanwhile, programs that use the mount wait. The old worker may have read
requests that it did not answer. The kernel sends these requests again (FUSE_NOTIFY_RESEND, Linux 6.9); older kernels lose them.

Some data has to be the same for all workers: the numbers of store paths, and which files the kernel reads itself. The holder keeps
this data in memory files, which the workers inherit.

Signals: TERM and INT unmount (a second one ends the process immediately), HUP replaces the worker (a second one kills it).

If the holder dies, its worker becomes the holder and starts a new worker.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from narcore.errors import MountError
from narmount.daemon.control import control_path
from narmount.daemon.options import MountHandover, MountOptions
from narmount.fuse import device, protocol

# Exit codes of a worker: the file system was unmounted, the worker was told to stop, a setting is wrong, or the worker can't start.
UNMOUNTED, STOPPED = 0, 75
USAGE, TROUBLE = 2, 3

# If a worker ends sooner than this, the holder pauses before it starts the next one. The pause doubles each time.
STEADY_SECONDS = 10.0
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0

START_POLL_SECONDS = 0.2  # interval of the checks for a signal while the first worker starts
QUIET_SECONDS = 1.0  # if unmounting takes longer, a message says why

LISTEN_BACKLOG = 64
OOM_SCORE = -900  # protects the holder from the OOM killer: if a mount is dead, many other processes fail

_SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Holder:
    """Supervises the worker of a mount until the file system is unmounted."""

    def __init__(self, handover: MountHandover, ready_fd: int | None = None) -> None:
        """``ready_fd`` is a pipe for the report of the first worker: ready, or what failed."""
        self._handover = handover
        self._ready_fd = ready_fd
        self._worker: subprocess.Popen[bytes] | None = None
        self._pause = FIRST_PAUSE
        self._started = 0.0
        self._stopping = self._replacing = self._has_explained = False

    def run(self) -> int:
        """Supervise workers. Returns the exit code of this process."""
        try:
            return self._supervise()
        finally:
            _remove_socket(self._handover)

    def _supervise(self) -> int:
        answer = self._start()
        if self._ready_fd is not None:
            tell_ready(self._ready_fd, answer)
        elif "error" in answer:
            _say(str(answer["error"]))
        elif "ready" in answer:
            _say(f"{self._handover.target} is mounted ({answer['mode']}); Ctrl-C or SIGTERM unmounts it")
        if "error" in answer:
            _unmount(self._handover.target)
            return TROUBLE if answer["code"] != USAGE else USAGE
        while True:
            number = self._next_signal()
            if number == signal.SIGCHLD:
                code = self._reap()
                if code is not None:
                    return code
            elif number == signal.SIGHUP:
                self._signal_worker(signal.SIGKILL if self._replacing else signal.SIGTERM)
                self._replacing = True
            elif self._stopping:
                self._signal_worker(signal.SIGKILL)
                if self._worker is not None:
                    self._worker.wait()
                return 128 + number
            else:
                self._stopping = True
                _unmount(self._handover.target)

    def _next_signal(self) -> int:
        if self._stopping and not self._has_explained:
            found = signal.sigtimedwait(_SIGNALS, QUIET_SECONDS)
            if found is not None:
                return found.si_signo
            self._has_explained = True
            step = "this process ends when no program uses the mount any more, or on a second Ctrl-C or SIGTERM"
            _say(f"{self._handover.target} is unmounted but still in use: {step}")
        return signal.sigwait(_SIGNALS)

    def _reap(self) -> int | None:
        """Handle the end of the worker (SIGCHLD): it crashed, was killed or stopped.

        Returns an exit code if the file system was unmounted; else starts the next worker.
        """
        assert self._worker is not None
        status = self._worker.poll()
        if status is None:  # another child has ended
            return None
        if status == UNMOUNTED:
            return 0
        if status != STOPPED:
            lost = "; programs whose requests were in progress hang until they get a signal (Linux 6.9 sends the requests again)"
            _say(
                f"the worker ended with status {status}; starting another{'' if self._handover.agreed.resend else lost}"
            )
            self._pause_after_crash()
        self._handover = replace(self._handover, generation=self._handover.generation + 1)
        self._start()
        return None

    def _pause_after_crash(self) -> None:
        if time.monotonic() - self._started > STEADY_SECONDS:
            self._pause = FIRST_PAUSE
            return
        time.sleep(self._pause)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _start(self) -> dict[str, object]:
        """Start a worker. Returns the report of the first worker: ready, or what failed. Later workers don't report."""
        reading, writing = os.pipe()
        self._started, self._replacing = time.monotonic(), False
        self._worker = subprocess.Popen(  # noqa: S603  starts this program
            [sys.executable, "-m", "narmount.daemon.worker", self._handover.to_json(), str(writing), str(os.getpid())],
            pass_fds=(*self._handover.descriptors, writing),
            stdin=subprocess.DEVNULL,
        )
        os.close(writing)
        with os.fdopen(reading) as answer:
            if self._handover.generation:
                return {}
            text = answer.readline() if self._wait_for_report(reading) else ""
        found: dict[str, object] = json.loads(text) if text else {"error": "the worker did not start", "code": TROUBLE}
        if "ready" in found:
            found |= {"mode": self._handover.mode, "reason": self._handover.no_passthrough_reason}
        return found

    def _wait_for_report(self, reading: int) -> bool:
        """Wait until the worker reports or ends. Returns False after a signal to end, which kills the worker."""
        while not select.select([reading], [], [], START_POLL_SECONDS)[0]:
            if signal.sigtimedwait((signal.SIGTERM, signal.SIGINT), 0) is not None:
                self._signal_worker(signal.SIGKILL)
                return False
        return True

    def _signal_worker(self, number: int) -> None:
        if self._worker is not None:
            self._worker.send_signal(number)


def mount(options: MountOptions) -> MountHandover:
    """Mount, and agree with the kernel on the protocol. Raises MountError or OSError; after an error, nothing is mounted."""
    control = control_path(options.run_dir, options.target)
    listener = _listen(control)
    try:
        reason = device.may_pass_through(options.cache_dir) if options.passthrough else "passthrough is turned off"
        fuse = device.mount(options.target, allow_other=options.allow_other)
        agreed, answer = protocol.agree(os.read(fuse, protocol.BUFFER_SIZE), passthrough=not reason)
        os.write(fuse, answer)
    except BaseException:
        control.unlink(missing_ok=True)
        raise
    if not reason and not agreed.passthrough:
        reason = "passthrough needs Linux 6.9 or newer"
    return MountHandover(
        device=fuse,
        listener=listener.detach(),
        path_numbers=os.memfd_create("path-numbers"),
        passthrough_files=os.memfd_create("passthrough-files"),
        generation=0,
        since=time.time(),
        agreed=agreed,
        no_passthrough_reason=reason or _try_passthrough(fuse, options.cache_dir),
        target=options.target,
        control=control,
        control_inode=control.stat().st_ino,
        metrics=options.metrics,
    )


def _try_passthrough(fuse: int, cache_dir: Path) -> str:
    """Return why the kernel refuses files of the cache directory, or an empty string if it accepts them."""
    fd = os.open(cache_dir, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    try:
        device.close_backing(fuse, device.open_backing(fuse, fd))
    except OSError as error:
        return f"the kernel refuses files in {cache_dir}: {error.strerror}"
    finally:
        os.close(fd)
    return ""


def _unmount(target: Path) -> None:
    with suppress(MountError):  # another program has unmounted it
        device.unmount(target, lazy=True)


def tell_ready(fd: int, answer: dict[str, object]) -> None:
    """Report to the process that started the holder. That process reads only the report of the first worker."""
    with suppress(BrokenPipeError):
        os.write(fd, json.dumps(answer).encode() + b"\n")
    os.close(fd)


def _listen(path: Path) -> socket.socket:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(
        missing_ok=True
    )  # the socket of a dead holder; the caller has checked that no mount of the target is alive
    listener = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(mask)
    listener.listen(LISTEN_BACKLOG)
    return listener


def _remove_socket(handover: MountHandover) -> None:
    """Remove the control socket, unless a later mount at the same target has replaced it after a lazy unmount."""
    with suppress(FileNotFoundError):
        if handover.control.stat().st_ino == handover.control_inode:
            handover.control.unlink()


def _say(text: str) -> None:
    sys.stderr.write(f"nar-serve: {text}\n")


def run(options: MountOptions) -> NoReturn:
    """Mount, hold the mount, and exit at its end. ``options.ready_fd`` gets a report when the mount is ready or has failed."""
    _begin()
    try:
        handover = mount(options)
    except (MountError, OSError) as error:
        _say(str(error))
        if options.ready_fd is not None:
            tell_ready(options.ready_fd, {"error": str(error), "code": TROUBLE})
        sys.exit(TROUBLE)
    sys.exit(Holder(handover, options.ready_fd).run())


def take_over(handover: MountHandover) -> NoReturn:
    """Turn this worker, whose holder has died, into the holder. The worker that it starts answers the requests."""
    os.execv(sys.executable, [sys.executable, "-m", "narmount.daemon.holder", "--handover", handover.to_json()])  # noqa: S606


def _begin() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    with suppress(OSError):  # only root may lower the score
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))


if __name__ == "__main__":
    if sys.argv[1] == "--handover":
        _begin()
        sys.exit(Holder(MountHandover.from_json(sys.argv[2])).run())
    run(MountOptions.from_json(sys.argv[1]))
