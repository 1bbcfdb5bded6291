"""The real program, `nar-serve mount`, in processes of its own, and how tests look at what it mounts.

A mount that hangs would hang whoever looks at it. So what may wait is done by other processes, which can be given up; and at the
end everything is ended by force.
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
"""What nothing may leave in the log, unless the test says that it expects trouble."""

T = TypeVar("T")

PLAIN = ("--no-passthrough",)


def need_passthrough(cache_dir: Path) -> None:
    """That the kernel may read files of that directory."""
    if reason := device.may_pass_through(cache_dir):
        needs.missing("FUSE passthrough", reason)


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """That of the tests, with these settings and no others."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NAR_", "NIX_"))}
    return kept | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)} | dict(settings)


@dataclass(frozen=True, slots=True, eq=False)
class Mounted:
    """A mount. ``process`` is the holder, or who started it; ``log`` has what all of it said."""

    target: Path
    run_dir: Path
    cache_dir: Path
    log: Path
    process: subprocess.Popen[bytes]
    environ: Mapping[str, str] = field(repr=False)

    def path(self, base_name: str) -> Path:
        """Where a store path is; given with or without the store dir."""
        return self.target / base_name.rpartition("/")[2]

    def status(self) -> dict[str, Any]:
        """What it says of itself. A worker that is just ending does not, and then the next one is asked."""
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
        """At once; gives the process id that it had."""
        pid = self.worker
        os.kill(pid, signal.SIGKILL)
        return pid

    def wait_for_successor(self, former: int) -> int:
        """Until another worker answers; gives its process id."""
        return until(lambda: pid if (pid := self.worker) != former else 0, "another worker")

    def mount(self) -> Mount | None:
        """What is mounted there, as mountinfo has it."""
        return next(iter(mounts_at(self.target)[-1:]), None)

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """``nar-serve mount`` with other arguments, in the same environment."""
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
        """RuntimeError with the log if it ends first, or takes too long."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            if self.is_up():
                return
            time.sleep(0.02)
        raise RuntimeError(f"it did not mount; its log:\n{self.log_text()[-8000:]}")

    def stop(self) -> None:
        """Politely; and then by force, whatever state it is in."""
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
    """End every mount that is still there by force: whoever waits for one of them goes on, with an error."""
    for mount in _LIVE:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(mount.process.pid, signal.SIGKILL)


def unmount_all(target: Path) -> None:
    """Whatever is mounted there, however many on top of each other."""
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
    """A mount of the binary cache at ``url``, below ``directory``, until the end of the ``with``.

    ``key`` is a public key to trust. Fails if the log then has a traceback in it, unless ``expect_trouble``.
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


# ---- looking


def nar_hash(path: Path) -> str:
    """The SHA-256 of the NAR of what is at ``path``, in Nix's base 32: by a walk over the mounted files."""
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
        with open(path, "rb") as file:  # noqa: PTH123  names that are no text
            while chunk := file.read(1 << 20):
                yield Data(chunk)


def by_nix_hash(*paths: Path) -> list[str]:
    """The same for several, by Nix."""
    command = ["nix-hash", "--type", "sha256", "--base32", *map(str, paths)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=True).stdout.split()


def resident(path: Path) -> int:
    """Bytes of a file that are in the page cache (mincore(2), which takes an address)."""
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


def until(condition: Callable[[], T], what: str, seconds: float = 15) -> T:
    """What ``condition`` gives, as soon as that is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.01)
    return found


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of a program that ended by itself."""

    status: int
    output: bytes
    errors: str
    seconds: float


_ASKING: list["Asking"] = []


def end_programs() -> None:
    """Those that a test that has failed left behind."""
    for asking in _ASKING:
        asking.kill()
    _ASKING.clear()


class Asking:
    """A program that asks the mount for something, in a process of its own: ``cat FILE``, for one."""

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
        """Fails if it takes longer."""
        try:
            output, errors = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"{self.process.args!r} has not ended within {seconds} s")
        took = time.monotonic() - self.started
        return Outcome(self.process.returncode, output, errors.decode(errors="replace"), took)

    def kill(self) -> float:
        """As a container's end does it; how many seconds it took until the process was gone."""
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
    """Run it to its end."""
    return Asking(*command).outcome(seconds)


# ---- as containers see it


def container(root: Path, mount: Mounted, script: str) -> list[str]:
    """A command that runs ``script`` in a mount namespace of its own, with these variables: ``$mnt`` (the mount) and
    ``$root``, a directory in which there is /nix/store, to be mounted on by the script.
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
    """The end of such a script: run a program that lives in the store, and see nothing but the store."""
    return 'exec chroot "$root" ' + " ".join(f"'{word}'" for word in command)
