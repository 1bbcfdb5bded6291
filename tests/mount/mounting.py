"""Run the real `nar-serve mount` in processes of its own, and access what it mounts.

If a mount hangs, every process that accesses it hangs too. So if a mount may hang, a test accesses it in another process, with a
time limit. At the end, the test kills all these processes.
"""

import contextlib
import ctypes
import hashlib
import mmap
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from narcore.errors import MountError
from narcore.formats.nar import Data, Directory, DirectoryEnd, NarEvent, Regular, Symlink, write_nar
from narcore.formats.nixbase32 import encode
from narmount.daemon.control import control_path, read_status
from narmount.fuse import device, syscalls
from narmount.fuse.mountinfo import Mount, mounts_at
from tests import ROOT, needs

PROGRAM = (sys.executable, "-m", "narserve", "mount")
START_SECONDS = 30
STOP_SECONDS = 10
NOISE = ("Traceback (most recent call last)", "ResourceWarning", "Exception ignored")
"""Words that must not be in the log, unless a test expects trouble."""

T = TypeVar("T")

PLAIN = ("--no-passthrough",)


def need_passthrough(cache_dir: Path) -> None:
    """Skip the test if the kernel can't read files of that directory itself."""
    if reason := device.may_pass_through(cache_dir):
        needs.missing("FUSE passthrough", reason)


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the tests with these settings only."""
    other = {name: value for name, value in os.environ.items() if not name.startswith(("NAR_", "NIX_"))}
    return other | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)} | dict(settings)


@dataclass(frozen=True, slots=True, eq=False)
class Mounted:
    """A mount. ``process`` is the holder, or the process that started it. ``log`` has the messages of all its processes."""

    target: Path
    run_dir: Path
    cache_dir: Path
    log: Path
    process: subprocess.Popen[bytes]
    environ: Mapping[str, str] = field(repr=False)

    def path(self, base_name: str) -> Path:
        """Return where the store path is in the mount. ``base_name`` may include the store directory."""
        return self.target / base_name.rpartition("/")[2]

    def status(self) -> dict[str, Any]:
        """Return the status. If a worker ends before it answers, the next worker is asked."""
        deadline = time.monotonic() + 20
        while True:
            try:
                return read_status(control_path(self.run_dir, self.target), 20)
            except MountError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    @property
    def holder(self) -> int:
        return int(self.status()["holder_pid"])

    @property
    def worker(self) -> int:
        return int(self.status()["worker_pid"])

    def kill_worker(self) -> int:
        """Kill the worker, and return its process id."""
        pid = self.worker
        os.kill(pid, signal.SIGKILL)
        return pid

    def wait_for_successor(self, former: int) -> int:
        """Wait until another worker answers, and return its process id."""
        return until(lambda: pid if (pid := self.worker) != former else 0, "another worker")

    def mount(self) -> Mount | None:
        """Return the topmost mount at the target, from mountinfo."""
        return next(iter(mounts_at(self.target)[-1:]), None)

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run ``nar-serve mount`` with these arguments in the same environment."""
        command = [*PROGRAM, *map(str, arguments)]
        return subprocess.run(
            command, env=self.environ, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
        )

    def is_up(self) -> bool:
        try:
            return bool(read_status(control_path(self.run_dir, self.target), 5))
        except (MountError, OSError):
            return False

    def wait_ready(self) -> None:
        """Wait until the mount answers. Raises RuntimeError with the log if the mount ends earlier, or takes too long."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            if self.is_up():
                return
            time.sleep(0.02)
        raise RuntimeError(f"it did not mount; its log:\n{self.log_text()[-8000:]}")

    def stop(self) -> None:
        """End the mount with SIGTERM, and then with SIGKILL, whatever state it is in."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        unmount_all(self.target)


_LIVE: list[Mounted] = []


def end_all() -> None:
    """Kill all mounts that are left. Processes that wait for one of them get an error."""
    for mount in _LIVE:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(mount.process.pid, signal.SIGKILL)


def unmount_all(target: Path) -> None:
    """Unmount everything at the target, however many mounts are on top of each other."""
    while mounts_at(target):
        syscalls.unmount(target, lazy=True)


@contextlib.contextmanager
def mounted(
    directory: Path,
    url: str,
    *options: str,
    key: str = "",
    settings: Mapping[str, str] | None = None,
    cache_dir: Path | None = None,
    expect_trouble: bool = False,
) -> Iterator[Mounted]:
    """Mount the binary cache at ``url`` below ``directory`` until the end of the ``with``.

    ``key`` is a public key to trust. Fails if the log has one of NOISE at the end, unless ``expect_trouble``.
    """
    target = directory / "mnt"
    target.mkdir(parents=True)
    cache_dir = cache_dir or directory / "cache"
    given = {"NAR_CACHE_URL": url, "NAR_CACHE_DIR": str(cache_dir), "NAR_RUN_DIR": str(directory / "run")}
    given |= {"NAR_TRUSTED_PUBLIC_KEYS": key, "NAR_MOUNT_DEADLINE": "10", "NAR_CACHE_SIZE": "2G"}
    environ = environment(given | dict(settings or {}))
    with (directory / "log").open("wb") as output:
        process = subprocess.Popen(
            [*PROGRAM, str(target), "--foreground", *options],
            cwd=ROOT,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    mount = Mounted(target, directory / "run", cache_dir, directory / "log", process, environ)
    _LIVE.append(mount)
    try:
        mount.wait_ready()
        yield mount
    finally:
        mount.stop()
        _LIVE.remove(mount)
    if not expect_trouble:
        found = [word for word in NOISE if word in mount.log_text()]
        assert not found, f"{found} in the log:\n{mount.log_text()[-8000:]}"


# ---- reading


def nar_hash(path: Path) -> str:
    """Walk over the files at ``path``, and return the SHA-256 of their NAR in Nix's base 32."""
    sha256 = hashlib.sha256()
    for chunk in write_nar(_events(os.fsencode(path), b"")):
        sha256.update(chunk)
    return encode(sha256.digest())


def _events(path: bytes, name: bytes) -> Iterator[NarEvent]:
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        yield Symlink(name, os.readlink(path))  # noqa: PTH115  pathlib drops ./ and //
    elif stat.S_ISDIR(status.st_mode):
        yield Directory(name)
        for child in sorted(os.listdir(path)):
            yield from _events(path + b"/" + child, child)
        yield DirectoryEnd()
    else:
        yield Regular(name, bool(status.st_mode & 0o100), status.st_size)
        with open(path, "rb") as file:  # noqa: PTH123  names that are not UTF-8
            while chunk := file.read(1 << 20):
                yield Data(chunk)


def by_nix_hash(*paths: Path) -> list[str]:
    """Return the hashes that `nar_hash` returns, computed by Nix."""
    command = ["nix-hash", "--type", "sha256", "--base32", *map(str, paths)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=True).stdout.split()


def resident(path: Path) -> int:
    """Return how many bytes of a file are in the page cache (mincore(2), which takes an address)."""
    size = path.stat().st_size
    if not size:
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    pages = ctypes.create_string_buffer((size + mmap.PAGESIZE - 1) // mmap.PAGESIZE)
    with path.open("rb") as file:
        address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
    assert address != ctypes.c_void_p(-1).value, os.strerror(ctypes.get_errno())
    try:
        assert not libc.mincore(address, size, pages), os.strerror(ctypes.get_errno())
    finally:
        libc.munmap(address, size)
    return sum(page & 1 for page in pages.raw) * mmap.PAGESIZE


def until(condition: Callable[[], T], what: str = "the condition", seconds: float = 15) -> T:
    """Wait until ``condition`` returns a true value, and return it. ``what`` describes it in the failure."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not reached within {seconds} s"
        time.sleep(0.01)
    return found


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a program."""

    status: int
    output: bytes
    errors: str
    seconds: float


_ASKING: list["Asking"] = []


def end_programs() -> None:
    """Kill the programs that a failed test has left."""
    for asking in _ASKING:
        asking.kill()
    _ASKING.clear()


class Asking:
    """A program that accesses the mount in its own process, such as ``cat FILE``."""

    def __init__(self, *command: str | Path) -> None:
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        _ASKING.append(self)

    @property
    def waits(self) -> bool:
        return self.process.poll() is None

    def outcome(self, seconds: float = 30) -> Outcome:
        """Wait for the end of the program. Fails the test if that takes longer."""
        try:
            output, errors = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"{self.process.args!r} has not ended within {seconds} s")
        took = time.monotonic() - self.started
        return Outcome(self.process.returncode, output, errors.decode(errors="replace"), took)

    def kill(self) -> float:
        """Kill the process, as the end of a container does. Returns how many seconds its end took."""
        start = time.monotonic()
        self.process.kill()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            return 15
        finally:
            for stream in (self.process.stdout, self.process.stderr):
                assert stream is not None
                stream.close()
        return time.monotonic() - start


def ask(*command: str | Path, seconds: float = 30) -> Outcome:
    """Run a program that accesses the mount, and return its outcome."""
    return Asking(*command).outcome(seconds)


# ---- containers


def container(root: Path, mount: Mounted, script: str) -> list[str]:
    """Return a command that runs ``script`` in its own mount namespace.

    The script has the variables ``$mnt``, the mount, and ``$root``, a directory in which it mounts something at nix/store.
    """
    (root / "nix/store").mkdir(parents=True)
    names = f"mnt={mount.target} root={root}"
    return ["unshare", "--mount", "--propagation", "private", "sh", "-euc", f"{names}; {script}"]


BIND = 'mount --bind "$mnt" "$root/nix/store"; '
OVERLAY = (
    'mkdir "$root/upper" "$root/work"; '
    'mount -t overlay pod -o "lowerdir=$mnt,upperdir=$root/upper,workdir=$root/work,volatile" "$root/nix/store"; '
)


def in_chroot(*command: str) -> str:
    """Return the last command of a script for `container`: it runs a program of the store, which sees only the store."""
    return 'exec chroot "$root" ' + " ".join(f"'{word}'" for word in command)
