"""The process that holds a mount. It opens the device and keeps it open, and does nothing else that could fail.

A mount lives as long as somebody has its device open. The worker that answers requests may crash, be killed or be replaced: the
holder starts another one, which inherits the device, and meanwhile whoever asks for something waits. Where the kernel can send
requests again that the last worker had read and not answered (FUSE_NOTIFY_RESEND, Linux 6.9), not even those are lost.

What has to be the same for every worker is kept here, in memory files that all of them inherit: the numbers of store paths, and
which files the kernel reads by itself.

Signals: TERM and INT unmount (a second one ends at once), HUP replaces the worker (a second one kills it, if it is stuck).

If it is the holder that dies, its worker becomes the holder, and starts a worker.
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

UNMOUNTED, STOPPED = 0, 75  # how a worker ends: nothing is left to be served; or it was told to
USAGE, TROUBLE = 2, 3  # or it could not begin

# A worker that ends sooner than this is restarted only after a pause, twice as long each time.
STEADY_SECONDS = 10.0
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0

START_LOOK_SECONDS = 0.2  # between two looks whether a first worker that is not ready yet is to end
PATIENCE_SECONDS = 1.0  # so long an end may take without a word

LISTEN_BACKLOG = 64
OOM_SCORE = -900  # many processes depend on this one; without it they see a dead mount

_SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Holder:
    """Keeps a mount until it is unmounted."""

    def __init__(self, handover: MountHandover, ready_fd: int | None = None) -> None:
        """``ready_fd``: where to say that the first worker is ready."""
        self._handover = handover
        self._ready_fd = ready_fd
        self._worker: subprocess.Popen[bytes] | None = None
        self._pause = FIRST_PAUSE
        self._started = 0.0
        self._stopping = self._replacing = self._told = False

    def run(self) -> int:
        """The exit code."""
        try:
            return self._keep()
        finally:
            _remove_socket(self._handover)

    def _keep(self) -> int:
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
        if self._stopping and not self._told:
            found = signal.sigtimedwait(_SIGNALS, PATIENCE_SECONDS)
            if found is not None:
                return found.si_signo
            self._told = True
            step = "this ends with the last who uses it, and at once when it is told so again (Ctrl-C, SIGTERM)"
            _say(f"{self._handover.target} is unmounted, and still in use: {step}")
        return signal.sigwait(_SIGNALS)

    def _reap(self) -> int | None:
        """The exit code of all, if it was the end; else another worker has been started."""
        assert self._worker is not None
        status = self._worker.poll()
        if status is None:  # another child's
            return None
        if status == UNMOUNTED:
            return 0
        if status != STOPPED:
            lost = (
                "; this kernel can't send its requests again (Linux 6.9 can): who waits for one has to be interrupted"
            )
            _say(
                f"the worker ended with status {status}, and is replaced{'' if self._handover.agreed.resend else lost}"
            )
            self._calm_down()
        self._handover = replace(self._handover, generation=self._handover.generation + 1)
        self._start()
        return None

    def _calm_down(self) -> None:
        if time.monotonic() - self._started > STEADY_SECONDS:
            self._pause = FIRST_PAUSE
            return
        time.sleep(self._pause)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _start(self) -> dict[str, object]:
        """Start a worker. What the first one says when it is ready, or of what keeps it from that."""
        reading, writing = os.pipe()
        self._started, self._replacing = time.monotonic(), False
        self._worker = subprocess.Popen(  # noqa: S603  ourselves
            [sys.executable, "-m", "narmount.daemon.worker", self._handover.to_json(), str(writing), str(os.getpid())],
            pass_fds=(*self._handover.descriptors, writing),
            stdin=subprocess.DEVNULL,
        )
        os.close(writing)
        with os.fdopen(reading) as answer:
            if self._handover.generation:
                return {}
            text = answer.readline() if self._is_heard(reading) else ""
        found: dict[str, object] = json.loads(text) if text else {"error": "the worker did not start", "code": TROUBLE}
        if "ready" in found:
            found |= {"mode": self._handover.mode, "reason": self._handover.no_passthrough_reason}
        return found

    def _is_heard(self, reading: int) -> bool:
        """Wait until the worker says something, or ends. Not if we are told to end before, which ends it, whatever it says then."""
        while not select.select([reading], [], [], START_LOOK_SECONDS)[0]:
            if signal.sigtimedwait((signal.SIGTERM, signal.SIGINT), 0) is not None:
                self._signal_worker(signal.SIGKILL)
                return False
        return True

    def _signal_worker(self, number: int) -> None:
        if self._worker is not None:
            self._worker.send_signal(number)


def mount(options: MountOptions) -> MountHandover:
    """Mount, and agree with the kernel on how to go on. Raises MountError and OSError, and then nothing is mounted."""
    control = control_path(options.run_dir, options.target)
    listener = _listen(control)
    try:
        reason = device.may_pass_through(options.cache_dir) if options.passthrough else "it is turned off"
        fuse = device.mount(options.target, allow_other=options.allow_other)
        agreed, answer = protocol.agree(os.read(fuse, protocol.BUFFER_SIZE), passthrough=not reason)
        os.write(fuse, answer)
    except BaseException:
        control.unlink(missing_ok=True)
        raise
    if not reason and not agreed.passthrough:
        reason = "the kernel can't (Linux 6.9 can)"
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
    """Why it is of no use, or nothing."""
    fd = os.open(cache_dir, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    try:
        device.close_backing(fuse, device.open_backing(fuse, fd))
    except OSError as error:
        return f"the kernel refuses files of {cache_dir}: {error.strerror}"
    finally:
        os.close(fd)
    return ""


def _unmount(target: Path) -> None:
    with suppress(MountError):  # it was unmounted by somebody else
        device.unmount(target, lazy=True)


def tell_ready(fd: int, answer: dict[str, object]) -> None:
    with suppress(BrokenPipeError):
        os.write(fd, json.dumps(answer).encode() + b"\n")
    os.close(fd)


def _listen(path: Path) -> socket.socket:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # of one that died; of one that lives we would not be here
    listener = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(mask)
    listener.listen(LISTEN_BACKLOG)
    return listener


def _remove_socket(handover: MountHandover) -> None:
    """Unless it is a successor's, who has mounted at the same place when this one was out of sight."""
    with suppress(FileNotFoundError):
        if handover.control.stat().st_ino == handover.control_inode:
            handover.control.unlink()


def _say(text: str) -> None:
    sys.stderr.write(f"nar-serve: {text}\n")


def run(options: MountOptions) -> NoReturn:
    """Mount, and keep it mounted; ends the process. What goes wrong before it is mounted is told to ``ready_fd``."""
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
    """Turn this process, a worker whose holder has died, into the holder; its requests are for the worker that is started then."""
    os.execv(sys.executable, [sys.executable, "-m", "narmount.daemon.holder", "--handover", handover.to_json()])  # noqa: S606


def _begin() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    with suppress(OSError):  # only root may
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))


if __name__ == "__main__":
    if sys.argv[1] == "--handover":
        _begin()
        sys.exit(Holder(MountHandover.from_json(sys.argv[2])).run())
    run(MountOptions.from_json(sys.argv[1]))
