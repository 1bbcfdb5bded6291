"""Random reads by many processes while the store fails and workers and the holder are killed.

    python -m tests.mount.soak --minutes 30 --processes 16

Every byte is compared. EIO is allowed while a store fails. Wrong bytes, missing names, other errors, and operations that take much
longer than the deadline are failures. The memory, descriptors and threads of the processes have to stay within limits.
"""

import argparse
import errno
import json
import mmap
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests import ROOT, builders
from tests.builders import Tree
from tests.e2e.upstream import Upstream
from tests.mount.conftest import write
from tests.mount.mounting import PLAIN, Mounted, mounted
from tests.mount.samples import KEY, NARS, base, files_of, random_bytes

MODES: Mapping[str, tuple[str, ...]] = {"passthrough": (), "plain": PLAIN, "early": ("--early",)}
TREES = 16
CACHE_SIZE = "24M"  # the trees have about 50 MB, so that eviction never stops
DEADLINE = 4
# Seconds that one operation may take: the kernel reads ahead, fails, and asks again, and before that a worker may have to start on
# this busy machine.
LIMIT = 2 * DEADLINE + 6

# Limits for one process. A worker has listings, and at most 256 open NARs and 64 threads of each kind.
RSS_MAX, FDS_MAX, THREADS_MAX = 250_000_000, 600, 200
GROWTH_MAX = 30_000_000  # bytes in the second half of the life of a worker, if it lives for some minutes
OLD_SECONDS = 180

FAULTS: Sequence[tuple[str, dict[str, Any]]] = (
    ("*", {"drop": True}),
    ("*", {"status": 500}),
    ("*.narinfo", {"status": 503}),
    ("*.narinfo", {"delay": 1.0}),
    ("*.narinfo", {"body": b"garbage"}),
    (NARS, {"drop": True}),
    (NARS, {"status": 404}),
    (NARS, {"cut_after": 100_000}),
    (NARS, {"stall_after": 50_000}),
    (NARS, {"length": 70_000}),
    (NARS, {"patch": (60_000, bytes(8))}),
    (NARS, {"rate": 500_000}),
)


def trees() -> dict[str, Tree]:
    """Return trees with files of 0 bytes to 2 MB, nested directories, and links."""
    return {
        f"soak-{number}": {
            "large": random_bytes(number, 2_000_000 + number * 4099),
            "middle": random_bytes(100 + number, 300_001),
            "small": {f"f{place}": random_bytes(1000 * number + place, place * 997 % 9000) for place in range(60)},
            "deep": {"er": {"and": {"deeper": random_bytes(200 + number, 140_000)}}},
            "link": builders.link("deep/er/and/deeper"),
        }
        for number in range(TREES)
    }


# ---- readers


class Reader:
    """A process that reads randomly until the time ``until``, and counts the outcomes."""

    def __init__(self, target: Path, expected: Path, seed: int, until: float) -> None:
        self._target = target
        self._expected = expected
        self._until = until
        self._random = random.Random(seed)
        self._files = sorted(path.relative_to(expected) for path in expected.rglob("*") if path.is_file())
        self._open_files: dict[Path, int] = {}
        self.found: Counter[str] = Counter()
        self.longest = 0.0
        self.problems: list[str] = []

    def run(self) -> None:
        operations: list[Callable[[Path], None]] = [
            self._part, self._part, self._part, self._long_open, self._whole, self._mapped, self._listed, self._unknown,
        ]  # fmt: skip
        while time.time() < self._until:
            operation = self._random.choice(operations)
            self._try(operation, self._random.choice(self._files))
        for fd in self._open_files.values():
            os.close(fd)

    def _try(self, operation: Callable[[Path], None], file: Path) -> None:
        start = time.monotonic()
        try:
            operation(file)
            self.found["right"] += 1
        except OSError as error:
            self.found[errno.errorcode.get(error.errno or 0, "?")] += 1
            if error.errno != errno.EIO:
                self._complain(f"{operation.__name__} {file}: {error}")
            time.sleep(0.02)
        took = time.monotonic() - start
        self.longest = max(self.longest, took)
        if took > LIMIT:
            self._complain(f"{operation.__name__} {file}: took {took:.1f} s")

    def _complain(self, problem: str) -> None:
        if len(self.problems) < 20:
            self.problems.append(f"{time.strftime('%H:%M:%S')} {problem}")

    def _compare(self, file: Path, offset: int, seen: bytes, length: int) -> None:
        with (self._expected / file).open("rb") as expected:
            right = os.pread(expected.fileno(), length, offset)
        if seen != right:
            self.found["wrong"] += 1
            self._complain(f"wrong bytes: {file} at {offset}, {len(seen)} of {len(right)}")

    def _open(self, file: Path) -> int:
        fd = os.open(self._target / file, os.O_RDONLY)
        if self._random.random() < 0.5:  # drop the pages, so that reads go to the worker or the cache
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return fd

    def _part(self, file: Path) -> None:
        fd = self._open(file)
        try:
            for _ in range(3):
                self._read(fd, file)
        finally:
            os.close(fd)

    def _read(self, fd: int, file: Path) -> None:
        size = (self._expected / file).stat().st_size
        offset, length = self._random.randrange(size + 1), self._random.choice((1, 100, 4096, 150_000))
        self._compare(file, offset, read_all(fd, length, offset), length)

    def _long_open(self, file: Path) -> None:
        """Read files that stay open while workers change."""
        if len(self._open_files) < 8 and file not in self._open_files:
            self._open_files[file] = self._open(file)
        file = self._random.choice(list(self._open_files))
        os.posix_fadvise(self._open_files[file], 0, 0, os.POSIX_FADV_DONTNEED)
        self._read(self._open_files[file], file)
        if self._random.random() < 0.05:
            os.close(self._open_files.pop(file))

    def _whole(self, file: Path) -> None:
        size = (self._expected / file).stat().st_size
        fd = self._open(file)
        try:
            if os.fstat(fd).st_size != size:
                self.found["wrong"] += 1
                self._complain(f"wrong size: {file}")
            self._compare(file, 0, read_all(fd, size + 1, 0), size + 1)
        finally:
            os.close(fd)

    def _mapped(self, file: Path) -> None:
        """Compare the first page through a mapping. write(2) reads the mapping, so a failure is EFAULT and not SIGBUS."""
        fd, copy = self._open(file), os.memfd_create("copy")
        try:
            size = min(os.fstat(fd).st_size, mmap.PAGESIZE)
            if size:
                with mmap.mmap(fd, size, access=mmap.ACCESS_READ) as mapped:
                    os.write(copy, mapped)
                self._compare(file, 0, os.pread(copy, size, 0), size)
        except OSError as error:
            raise OSError(errno.EIO if error.errno == errno.EFAULT else error.errno, str(error)) from error
        finally:
            os.close(copy)
            os.close(fd)

    def _listed(self, file: Path) -> None:
        directory = file.parent
        if sorted(os.listdir(self._target / directory)) != sorted(os.listdir(self._expected / directory)):
            self.found["wrong"] += 1
            self._complain(f"wrong names: {directory}")

    def _unknown(self, file: Path) -> None:
        try:
            os.lstat(self._target / base(f"unknown-{self._random.randrange(2000)}"))
        except FileNotFoundError:
            return
        self._complain("a name that no store has exists")

    def report(self) -> str:
        return json.dumps({"found": self.found, "longest": self.longest, "problems": self.problems})


def read_all(fd: int, length: int, offset: int) -> bytes:
    """Read up to ``length`` bytes. A read that fails in the middle returns the first part; the next one raises the error."""
    found = b""
    while len(found) < length and (chunk := os.pread(fd, length - len(found), offset + len(found))):
        found += chunk
    return found


# ---- disturbances


@dataclass(slots=True)
class Growth:
    """Peaks of the resources of the processes of the mount; and for each worker, times and memory."""

    peak: Counter[str] = field(default_factory=Counter)
    workers: dict[int, list[tuple[float, int]]] = field(default_factory=dict)
    restarts: int = 0
    paths: int = 0

    def look(self, mount: Mounted) -> None:
        with suppress(OSError, KeyError, ValueError):  # the process was killed just now
            status = mount.status()
            worker, holder = int(status["worker_pid"]), int(status["holder_pid"])
            self.restarts, self.paths = status["restarts"], status["paths_known"]
            if b"narmount" not in Path(f"/proc/{holder}/cmdline").read_bytes():
                return  # the holder has died, and its worker has not noticed yet
            for name, pid in (("worker", worker), ("holder", holder)):
                for what, value in measured(pid).items():
                    self.peak[f"{name} {what}"] = max(self.peak[f"{name} {what}"], value)
            self.workers.setdefault(worker, []).append((time.monotonic(), measured(worker)["rss"]))

    def problems(self) -> Iterator[str]:
        bounds = {"worker rss": RSS_MAX, "worker fds": FDS_MAX, "worker threads": THREADS_MAX}
        for name, bound in bounds.items():
            if self.peak[name] > bound:
                yield f"{name}: {self.peak[name]:,}, above the limit of {bound:,}"
        if self.paths > TREES:
            yield f"{self.paths} store paths are known, and there are only {TREES}"
        for looks in self.workers.values():
            if looks[-1][0] - looks[0][0] > OLD_SECONDS:
                grown = looks[-1][1] - looks[len(looks) // 2][1]
                if grown > GROWTH_MAX:
                    yield f"a worker has grown by {grown:,} bytes in the second half of its life"


def measured(pid: int) -> dict[str, int]:
    """Return memory, threads and descriptors of a process. Raises OSError if it has ended."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return {
        "rss": int(fields["VmRSS"].split()[0]) * 1024,
        "threads": int(fields["Threads"]),
        "fds": len(os.listdir(f"/proc/{pid}/fd")),
    }


class Trouble:
    """Threads that cause store failures and kill processes until the end of the ``with``."""

    def __init__(self, mount: Mounted, upstream: Upstream, growth: Growth, seed: int, kill_seconds: float) -> None:
        self._mount = mount
        self._upstream = upstream
        self._growth = growth
        self._random = random.Random(seed)
        self._kill_seconds = kill_seconds
        self._stop = threading.Event()
        self.done: Counter[str] = Counter()
        self._threads = [threading.Thread(target=each) for each in (self._fail, self._kill, self._look)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _fail(self) -> None:
        chance = random.Random(self._random.random())
        while not self._stop.wait(chance.uniform(0.5, 3)):
            pattern, details = chance.choice(FAULTS)
            with self._upstream.fault(pattern, **details):
                self.done["faults"] += 1
                self._stop.wait(chance.uniform(0.3, 2 * DEADLINE))

    def _kill(self) -> None:
        """Mostly kill the worker; sometimes replace it, or kill the holder. Sometimes pause for long."""
        chance = random.Random(self._random.random())
        while not self._stop.wait(self._kill_seconds * (8 if chance.random() < 0.1 else chance.uniform(0.3, 1.5))):
            what = chance.choices(("worker", "upgrade", "holder"), (6, 2, 1))[0]
            with suppress(OSError):
                if what == "upgrade":
                    os.kill(self._mount.holder, signal.SIGHUP)
                else:
                    os.kill(self._mount.worker if what == "worker" else self._mount.holder, signal.SIGKILL)
                self.done[f"{what}s"] += 1

    def _look(self) -> None:
        while not self._stop.wait(2):
            self._growth.look(self._mount)


# ---- the test


@dataclass(frozen=True, slots=True)
class Report:
    """The result. ``found`` counts the outcomes of the readers' operations. ``problems`` is empty if the test has passed."""

    found: Counter[str]
    done: Counter[str]
    longest: float
    growth: Growth
    problems: Sequence[str]

    def __str__(self) -> str:
        def listed(counts: Mapping[str, int]) -> str:
            return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))

        return "\n".join(
            [
                f"reads: {listed(self.found)}; the longest took {self.longest:.1f} s (limit: {LIMIT} s)",
                f"disturbed by: {listed(self.done)}; {self.growth.restarts} restarts of the worker",
                f"peaks: {listed(self.growth.peak)}; {self.growth.paths} store paths known",
                *(self.problems or ["no problem"]),
            ]
        )


def soak(directory: Path, *, seconds: float, processes: int, mode: str, seed: int, kill_seconds: float = 12) -> Report:
    """Run the test for that many seconds below the empty ``directory``."""
    expected = directory / "expected"
    for name, tree in trees().items():
        for file, data in files_of(tree):
            path = expected / base(name) / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    for name in trees():
        (expected / base(name) / "link").symlink_to("deep/er/and/deeper")
    write(directory / "store", builders.binary_cache(trees(), compression="none", secret_key=KEY))
    settings = {"NAR_CACHE_SIZE": CACHE_SIZE, "NAR_MOUNT_DEADLINE": str(DEADLINE)}
    growth = Growth()
    with ExitStack() as stack:
        upstream = stack.enter_context(Upstream())
        url = upstream.mount("store", directory / "store")
        mount = stack.enter_context(
            mounted(directory / "mount", url, *MODES[mode], key=str(KEY.public_key), settings=settings)
        )
        trouble = stack.enter_context(Trouble(mount, upstream, growth, seed, kill_seconds))
        readers = [_start_reader(mount, expected, seed + number, seconds) for number in range(processes)]
        results = [_result(reader, seconds + LIMIT + 20) for reader in readers]
    return _summary(results, trouble, growth)


def _start_reader(mount: Mounted, expected: Path, seed: int, seconds: float) -> "subprocess.Popen[bytes]":
    command = [
        sys.executable,
        "-m",
        "tests.mount.soak",
        "--reader",
        str(mount.target),
        str(expected),
        str(seed),
        str(seconds),
    ]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)


def _result(reader: "subprocess.Popen[bytes]", seconds: float) -> dict[str, Any]:
    try:
        output, _ = reader.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        stack = ""
        with suppress(OSError):
            stack = Path(f"/proc/{reader.pid}/stack").read_text()
        reader.kill()
        reader.communicate()
        return {"found": {}, "longest": seconds, "problems": [f"a reader has not ended; its kernel stack: {stack}"]}
    if reader.returncode:
        return {"found": {}, "longest": 0, "problems": [f"a reader has ended with status {reader.returncode}"]}
    found: dict[str, Any] = json.loads(output)
    return found


def _summary(results: Sequence[Mapping[str, Any]], trouble: Trouble, growth: Growth) -> Report:
    found: Counter[str] = Counter()
    for result in results:
        found.update(result["found"])
    problems = [problem for result in results for problem in result["problems"]] + list(growth.problems())
    if not found["right"]:
        problems.append("nothing was read")
    longest = max(result["longest"] for result in results)
    return Report(found, trouble.done, longest, growth, problems)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mount.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30, help="how long (default: %(default)g)")
    parser.add_argument("--processes", type=int, default=16, help="number of readers (default: %(default)s)")
    parser.add_argument("--mode", choices=MODES, default="passthrough", help="mode of the mount (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of everything random except the timing")
    parser.add_argument("--reader", nargs=4, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    given = _arguments()
    if given.reader:
        target, expected, seed, seconds = given.reader
        until = time.time() + float(seconds)  # counted from here, since starting may take long on a busy machine
        reader = Reader(Path(target), Path(expected), int(seed), until)
        reader.run()
        print(reader.report())
        return 0
    with tempfile.TemporaryDirectory(prefix="nar-serve-soak-") as directory:
        report = soak(
            Path(directory), seconds=given.minutes * 60, processes=given.processes, mode=given.mode, seed=given.seed
        )
    print(report)
    return bool(report.problems)


if __name__ == "__main__":
    sys.exit(main())
