"""Helpers for tests of the disk cache: clients that detect cut connections, small binary caches, and checks of the directory."""

import hashlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

from narcore.formats import nixbase32
from tests.builders import Tree, binary_cache, store_path
from tests.e2e.fronts import Front

NARS = "*/nar/*"
"""Pattern of `Upstream` that matches requests for NARs."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """The result of one request.

    ``status`` is 0 if there was no response. ``complete`` tells whether the body has the announced length.
    """

    status: int
    body: bytes
    complete: bool
    retry_after: str | None = None


def get(front: Front, path: str, headers: Mapping[str, str] | None = None, *, timeout: float = 30) -> Fetched:
    """Send a GET request on a new connection. Does not raise if the connection fails."""
    connection = front.connect(timeout)
    status, body, retry_after = 0, bytearray(), None
    try:
        connection.request("GET", path, headers=dict(headers or {}))
        response = connection.getresponse()
        status, retry_after = response.status, response.getheader("Retry-After")
        while chunk := response.read1(1 << 16):
            body += chunk
        complete = response.length == 0
    except (HTTPException, OSError):
        complete = False
    finally:
        connection.close()
    return Fetched(status, bytes(body), complete, retry_after)


def get_all(requests: Sequence[tuple[Front, str]], *, timeout: float = 30) -> list[Fetched]:
    """Send all requests concurrently; returns the results in the order of ``requests``."""
    barrier = threading.Barrier(len(requests))

    def get_one(request: tuple[Front, str]) -> Fetched:
        barrier.wait()
        return get(*request, timeout=timeout)

    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(get_one, requests))


def write_cache(
    directory: Path, trees: Mapping[str, Tree], compression: str = "zstd", *, listings: bool = True
) -> Path:
    """Write a binary cache that holds ``trees``, keyed by name, to ``directory``. Returns ``directory``."""
    for name, content in binary_cache(trees, compression=compression, listings=listings).items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    return directory


def url_of(name: str, path: str) -> str:
    """Return the URL path of the file ``path`` in the tree ``name``."""
    return f"{store_path(name)}/{path}"


def random_files(seed: int, size: int, count: int = 4) -> dict[str, bytes]:
    """Return ``count`` files of random bytes, ``size`` bytes in total."""
    generator = random.Random(seed)
    return {f"file-{number}": generator.randbytes(size // count) for number in range(count)}


def leftovers(directory: Path) -> set[str]:
    """Return the names in a cache directory, except entries and the permanent files for locks, slots and counters."""
    return {
        name
        for name in os.listdir(directory)
        if not name.endswith((".nar", ".listing")) and not name.startswith((".lock", ".slot-", ".counters"))
    }


def wrong_entries(directory: Path) -> list[str]:
    """Return the names of NARs in a cache directory whose hash differs from their name."""
    return [
        path.name
        for path in directory.glob("*.nar")
        if nixbase32.encode(hashlib.sha256(path.read_bytes()).digest()) != path.stem
    ]


@dataclass
class SizeWatcher:
    """Measures the size of a directory every 3 ms and keeps the maximum.

    ``largest`` is the maximum in bytes, ``measurements`` the number of measurements.
    """

    directory: Path
    largest: int = 0
    measurements: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self) -> Iterator["SizeWatcher"]:
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.003):
            self.largest = max(self.largest, self.size())
            self.measurements += 1

    def size(self) -> int:
        """Return the current size of the directory in bytes."""
        total = 0
        with os.scandir(self.directory) as items:
            for item in items:
                try:
                    total += item.stat().st_size
                except FileNotFoundError:
                    continue
        return total


class ProcessState(NamedTuple):
    """The threads and open files of a process."""

    threads: int
    descriptors: int
    open_files: list[str]

    def files_in(self, directory: Path) -> list[str]:
        """Return the open files in ``directory``, including deleted ones."""
        return [name for name in self.open_files if name.startswith(f"{directory}/")]


def process_state(pid: int) -> ProcessState:
    """Read the state of a process from /proc."""
    descriptors = list(Path(f"/proc/{pid}/fd").iterdir())
    open_files = []
    for descriptor in descriptors:
        with suppress(FileNotFoundError):
            open_files.append(str(descriptor.readlink()))
    return ProcessState(len(os.listdir(f"/proc/{pid}/task")), len(descriptors), open_files)


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Wait until ``condition`` is true; fails after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"the condition is still false after {seconds:g} s"
        time.sleep(0.01)
