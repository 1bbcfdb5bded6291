"""What the tests of the disk cache share: clients that notice a cut, caches written in a moment, a look at the directory."""

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
"""The requests for NARs, as a pattern for the upstream."""


@dataclass(frozen=True, slots=True)
class Got:
    """What came of one request. Status 0: no answer at all. ``whole``: the body has the length that was announced."""

    status: int
    body: bytes
    whole: bool
    retry_after: str | None = None


def get(front: Front, path: str, headers: Mapping[str, str] | None = None, *, timeout: float = 30) -> Got:
    """One request on a connection of its own."""
    connection = front.connect(timeout)
    status, body, retry_after = 0, bytearray(), None
    try:
        connection.request("GET", path, headers=dict(headers or {}))
        response = connection.getresponse()
        status, retry_after = response.status, response.getheader("Retry-After")
        while chunk := response.read1(1 << 16):
            body += chunk
        whole = response.length == 0
    except (HTTPException, OSError):
        whole = False
    finally:
        connection.close()
    return Got(status, bytes(body), whole, retry_after)


def get_all(requests: Sequence[tuple[Front, str]], *, timeout: float = 30) -> list[Got]:
    """All at once."""
    barrier = threading.Barrier(len(requests))

    def one(request: tuple[Front, str]) -> Got:
        barrier.wait()
        return get(*request, timeout=timeout)

    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(one, requests))


def write_cache(directory: Path, trees: Mapping[str, Mapping[str, Tree]], compression: str = "zstd") -> Path:
    """A binary cache that holds the trees."""
    for name, content in binary_cache(trees, compression=compression).items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    return directory


def url_of(name: str, path: str) -> str:
    return f"{store_path(name)}/{path}"


def random_files(seed: int, size: int, count: int = 4) -> dict[str, bytes]:
    """Files of random bytes, ``size`` of them in all."""
    generator = random.Random(seed)
    return {f"file-{number}": generator.randbytes(size // count) for number in range(count)}


def leftovers(directory: Path) -> set[str]:
    """What lies there and is neither an entry nor one of the files that always do."""
    return {
        name
        for name in os.listdir(directory)
        if not name.endswith((".nar", ".ls")) and not name.startswith((".lock", ".slot-", ".counters"))
    }


def wrong_entries(directory: Path) -> list[str]:
    """The NARs there that are not what their name says."""
    return [
        path.name
        for path in directory.glob("*.nar")
        if nixbase32.encode(hashlib.sha256(path.read_bytes()).digest()) != path.stem
    ]


@dataclass
class Sizes:
    """Looks at a directory all the time, and remembers how large it was at most."""

    directory: Path
    most: int = 0
    looks: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def watching(self) -> Iterator["Sizes"]:
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.003):
            self.most = max(self.most, self.size())
            self.looks += 1

    def size(self) -> int:
        """In bytes."""
        total = 0
        with os.scandir(self.directory) as items:
            for item in items:
                try:
                    total += item.stat().st_size
                except FileNotFoundError:
                    continue
        return total


class State(NamedTuple):
    """What a process holds."""

    threads: int
    descriptors: int
    open_files: list[str]

    def files_in(self, directory: Path) -> list[str]:
        """Those of the open files that are, or were, in there."""
        return [name for name in self.open_files if name.startswith(f"{directory}/")]


def process_state(pid: int) -> State:
    descriptors = list(Path(f"/proc/{pid}/fd").iterdir())
    open_files = []
    for descriptor in descriptors:
        with suppress(FileNotFoundError):
            open_files.append(str(descriptor.readlink()))
    return State(len(os.listdir(f"/proc/{pid}/task")), len(descriptors), open_files)


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.01)
