"""The process that holds a mount. It opens the device and keeps it open, and does nothing else that could fail.

A mount lives as long as somebody has its device open. The worker that answers requests may crash, be killed or be replaced: the
holder starts another one, which inherits the device, and meanwhile whoever asks for something waits. Where the kernel can send
requests again that the last worker had read and not answered (FUSE_NOTIFY_RESEND, Linux 6.9), not even those are lost.

What has to be the same for every worker is kept here, in memory files that all of them inherit: the numbers of store paths, and
which files the kernel reads by itself. Signals: TERM and INT unmount (a second one ends at once), HUP replaces the worker.
"""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from narcore.errors import MountError
from narcore.mount import device, protocol, syscalls
from narcore.mount.control import control_path
from narcore.mount.options import MountOptions, WorkerOptions

UNMOUNTED, STOPPED = 0, 75  # how a worker ends: nothing is left to be served; or it was told to
USAGE, TROUBLE = 2, 3  # or it could not begin

# A worker that ends sooner than this is restarted only after a pause, twice as long each time.
STEADY_SECONDS = 10.0
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0

LISTEN_BACKLOG = 64
OOM_SCORE = -900  # many processes depend on this one; without it they see a dead mount

_SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Holder:
    """One mount, from mounting to unmounting."""

    def __init__(self, options: MountOptions) -> None:
        self._options = options
        self._worker: subprocess.Popen[bytes] | None = None
        self._generation = 0
        self._pause = FIRST_PAUSE
        self._started = self._since = time.time()
        self._stopping = False
        self._control = control_path(options.run_dir, options.target)

    def run(self) -> int:
        """The exit code. Raises MountError and OSError before it is mounted."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        _protect()
        self._listener = _listen(self._control)
        self._names, self._backings = _memory("names"), _memory("backings")
        fcntl.fcntl(self._backings, fcntl.F_SETFL, os.O_APPEND)
        try:
            self._mount()
        except BaseException:
            self._control.unlink(missing_ok=True)
            raise
        try:
            return self._keep()
        finally:
            self._control.unlink(missing_ok=True)

    # --- the mount

    def _mount(self) -> None:
        options = self._options
        reason = device.may_pass_through(options.cache_dir) if options.passthrough else "it is turned off"
        if device.may_mount():
            self._device = device.open_device()
            syscalls.mount_fuse(self._device, options.target, allow_other=options.allow_other)
        else:
            self._device = device.mount_as_user(options.target, allow_other=options.allow_other)
        request = os.read(self._device, protocol.BUFFER_SIZE)
        self._agreed, answer = protocol.agree(request, passthrough=not reason)
        os.write(self._device, answer)
        if not reason and not self._agreed.passthrough:
            reason = "the kernel can't (Linux 6.9 can)"
        self._plain_reason = reason or self._try_passthrough()

    def _try_passthrough(self) -> str:
        """Why it is of no use, or nothing."""
        fd = os.open(self._options.cache_dir, os.O_RDWR | os.O_TMPFILE, 0o600)
        try:
            device.close_backing(self._device, device.open_backing(self._device, fd))
        except OSError as error:
            return f"the kernel refuses files of {self._options.cache_dir}: {error.strerror}"
        finally:
            os.close(fd)
        return ""

    def _unmount(self) -> None:
        with suppress(MountError):  # somebody else has done it
            if device.may_mount():
                syscalls.unmount(self._options.target, lazy=True)
            else:
                device.unmount_as_user(self._options.target, lazy=True)

    # --- the workers

    def _keep(self) -> int:
        answer = self._start(first=True)
        self._say_ready(answer)
        if "error" in answer:
            self._unmount()
            return TROUBLE if answer["code"] != USAGE else USAGE
        while True:
            number = signal.sigwait(_SIGNALS)
            if number == signal.SIGCHLD:
                code = self._reap()
                if code is not None:
                    return code
            elif number == signal.SIGHUP:
                self._signal_worker(signal.SIGTERM)
            elif self._stopping:
                self._signal_worker(signal.SIGKILL)
                return 128 + number
            else:
                self._stopping = True
                self._unmount()

    def _reap(self) -> int | None:
        """The exit code of all, if it was the end; else another worker has been started."""
        assert self._worker is not None
        status = self._worker.poll()
        if status is None:  # another child's
            return None
        if status == UNMOUNTED:
            return 0
        if status != STOPPED:
            _say(f"the worker ended with status {status}, and is replaced{self._lost()}")
            self._calm_down()
        self._generation += 1
        self._start(first=False)
        return None

    def _lost(self) -> str:
        if self._agreed.resend:
            return ""
        return "; this kernel can't send its requests again (Linux 6.9 can): who waits for one has to be interrupted"

    def _calm_down(self) -> None:
        if time.time() - self._started > STEADY_SECONDS:
            self._pause = FIRST_PAUSE
            return
        signal.sigtimedwait(
            (signal.SIGTERM, signal.SIGINT), self._pause
        )  # either ends the pause; asked again, it unmounts
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _start(self, *, first: bool) -> dict[str, object]:
        """Start a worker; what the first one says when it is ready, or of what keeps it from that."""
        reading, writing = os.pipe()
        options = WorkerOptions(
            device=self._device,
            listener=self._listener.fileno(),
            names=self._names,
            backings=self._backings,
            ready=writing,
            generation=self._generation,
            since=self._since,
            minor=self._agreed.minor,
            passthrough=self._agreed.passthrough,
            resend=self._agreed.resend,
            plain_reason=self._plain_reason,
            target=self._options.target,
            metrics=self._options.metrics,
        )
        self._started = time.time()
        self._worker = subprocess.Popen(  # noqa: S603  ourselves
            [sys.executable, "-m", "narcore.mount.worker", options.to_json()],
            pass_fds=(self._device, options.listener, self._names, self._backings, writing),
            stdin=subprocess.DEVNULL,
        )
        os.close(writing)
        with os.fdopen(reading) as answer:
            if not first:
                return {}
            text = answer.readline()
        found: dict[str, object] = json.loads(text) if text else {"error": "the worker did not start", "code": TROUBLE}
        return found

    def _signal_worker(self, number: int) -> None:
        if self._worker is not None:
            self._worker.send_signal(number)

    def _say_ready(self, answer: dict[str, object]) -> None:
        if "ready" in answer:
            answer |= {"mode": "plain" if self._plain_reason else "passthrough", "reason": self._plain_reason}
        tell_ready(self._options.ready_fd, answer)


def tell_ready(fd: int | None, answer: dict[str, object]) -> None:
    if fd is not None:
        with suppress(BrokenPipeError):
            os.write(fd, json.dumps(answer).encode() + b"\n")
        os.close(fd)


def _protect() -> None:
    with suppress(OSError):  # only root may
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))


def _memory(name: str) -> int:
    """A file without a place, which a child inherits."""
    fd = os.memfd_create(name)
    os.set_inheritable(fd, True)
    return fd


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


def _say(text: str) -> None:
    sys.stderr.write(f"nar-serve: {text}\n")


def run(options: MountOptions) -> NoReturn:
    """Mount, and keep it mounted; ends the process. What goes wrong before it is mounted is told to ``ready_fd``."""
    try:
        code = Holder(options).run()
    except (MountError, OSError) as error:
        _say(str(error))
        tell_ready(options.ready_fd, {"error": str(error), "code": TROUBLE})
        code = TROUBLE
    sys.exit(code)


if __name__ == "__main__":
    run(MountOptions.from_json(sys.argv[1]))
