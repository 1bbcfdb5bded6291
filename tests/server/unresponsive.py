"""Measures how a server answers cached files and /healthz while its store does not answer, and cold requests to a slow store.

For each kind of silence, 70 clients request 70 paths again and again. Meanwhile, one client requests a cached file and /healthz.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path

from tests.builders import binary_cache, hash_part, store_path
from tests.server.serving import Serving, fetch, serving
from tests.server.slowstore import FOREVER, SlowStore, no_delays

CLIENTS = 70
CACHED = "cached-1"
CACHED_FILE = f"{store_path(CACHED)}/file"
NAMES = [f"path-{number}" for number in range(CLIENTS)]
FILES = binary_cache({name: {"file": name.encode() * 1000} for name in [CACHED, *NAMES]})

SILENCES = {
    "narinfo head": (".narinfo", (FOREVER, 0.0)),
    "narinfo body": (".narinfo", (0.0, FOREVER)),
    "listing": (".ls", (FOREVER, 0.0)),
    "NAR head": (".zstd", (FOREVER, 0.0)),
    "NAR body": (".zstd", (0.0, FOREVER)),
}
"""The kinds of files that are not answered, by their endings, and the delays before head and body."""

# The pause of an attacking client after an answer: without one, 70 clients need all CPU time for their own refusals.
PAUSE_SECONDS = 0.25


@dataclass
class Result:
    """The seconds that each request of the measuring client took, and how many attacking requests got each status."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    statuses: Counter[int] = field(default_factory=Counter)

    def percentile(self, path: str, share: float = 0.99) -> float:
        times = sorted(self.seconds[path])
        return times[min(len(times) - 1, int(share * len(times)))]


def delays_of(silence: str, path: str) -> tuple[float, float]:
    end, delays = SILENCES[silence]
    return delays if path.endswith(end) else no_delays(path)


@contextmanager
def attacking(server: Serving, result: Result) -> Iterator[None]:
    stop = threading.Event()

    def client(name: str) -> None:
        while not stop.is_set():
            try:
                status = fetch(server.port, f"/nix/store/{hash_part(name)}/file").status
            except (OSError, HTTPException):  # the server stops before it has answered
                status = 0
            result.statuses[status] += 1
            stop.wait(PAUSE_SECONDS * random.uniform(0.5, 1.5))

    threads = [threading.Thread(target=client, args=(name,), daemon=True) for name in NAMES]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()  # the threads end when the server stops


def measure(directory: Path, silence: str, seconds: float) -> Result:
    """Attack a server for some seconds, and measure the answers to cached requests."""
    result = Result({CACHED_FILE: [], "/healthz": []})
    with SlowStore(FILES) as store, serving(directory, store.url) as server:
        with ThreadPoolExecutor(CLIENTS) as pool:  # more than one worker answers at once, so each gets to know the path
            for reply in pool.map(server.get, [CACHED_FILE] * (4 * CLIENTS)):
                assert reply.body == CACHED.encode() * 1000
        store.delays = lambda path: delays_of(silence, path)
        with attacking(server, result):
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                for path, times in result.seconds.items():
                    since = time.monotonic()
                    reply = server.get(path)
                    assert reply.status == 200, f"{path}: {reply.status}"
                    times.append(time.monotonic() - since)
                time.sleep(0.005)
        server.kill()  # its threads would wait for the store
    return result


def cold_requests(directory: Path, number: int, *, delay: float) -> Counter[int]:
    """Send requests for different paths, all at once, to a server whose store needs ``delay`` seconds for each answer."""
    with SlowStore(FILES, lambda _path: (delay, 0.0)) as store, serving(directory, store.url) as server:

        def get(name: str) -> int:
            reply = server.get(f"/nix/store/{hash_part(name)}-{name}/file")
            return reply.status if reply.status != 200 or reply.body == name.encode() * 1000 else -1

        with ThreadPoolExecutor(number) as pool:
            return Counter(pool.map(get, NAMES[:number]))
