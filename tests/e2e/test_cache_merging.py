"""One download for many readers in several processes, and its recovery when one of the processes is killed."""

import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from narcore.cache.narcache import NarCache
from tests import proofs
from tests.e2e import trees
from tests.e2e.cache_support import (
    NARS,
    Fetched,
    SizeWatcher,
    get,
    get_all,
    leftovers,
    process_state,
    random_files,
    until,
    url_of,
    write_cache,
    wrong_entries,
)
from tests.e2e.client import url_path
from tests.e2e.conftest import RunFront
from tests.e2e.fronts import Front, Shape
from tests.e2e.nixcaches import NixCaches
from tests.e2e.upstream import Upstream

TWO = Shape(workers=2, threads=64)
PRELOADED = {"GUNICORN_CMD_ARGS": "--preload"}
RATE = 5_000_000  # bytes per second: the download takes longer than everything else


@pytest.mark.parametrize("compression", ["zstd", "xz"])
def test_a_hundred_clients_share_one_download(
    upstream: Upstream, run_front: RunFront, caches: NixCaches, tmp_path: Path, compression: str
) -> None:
    files = [entry for entry in caches.entries(trees.STDLIB_NAME) if entry.kind == "regular"]
    files = random.Random(3).sample(files, 100)
    paths = [url_path(caches.store_paths[trees.STDLIB_NAME], entry.path) for entry in files]
    seconds = []
    for clients in (1, 100):
        directory = tmp_path / str(clients)
        with run_front(f"{upstream.url}/{compression}", directory, shape=TWO) as front:
            upstream.clear()
            with upstream.fault(NARS, rate=RATE):
                started = time.monotonic()
                got = get_all([(front, path) for path in paths[:clients]])
                seconds.append(time.monotonic() - started)
            for response, entry in zip(got, files, strict=False):
                assert (response.status, response.body) == (200, entry.source.read_bytes())
            assert upstream.count(NARS) == 1
            if clients == 100:
                upstream.clear()
                again = get_all([(front, path) for path in paths])
                assert [response.body for response in again] == [response.body for response in got]
                assert upstream.count(NARS) == 0
        assert leftovers(directory) == set()
    assert seconds[1] <= 1.5 * seconds[0]


def test_descriptors_and_threads_do_not_grow(
    upstream: Upstream, run_front: RunFront, caches: NixCaches, tmp_path: Path
) -> None:
    """After readers that finish, disconnect early or get errors, there are as many descriptors and threads as before."""
    big = caches.store_paths[trees.BIG_NAME]
    paths = [url_path(big, name) for name in (b"a-first.txt", b"data.bin", b"later.bin", b"z-last.txt")]
    directory = tmp_path / "nars"
    with run_front(f"{upstream.url}/zstd", directory, shape=Shape(threads=8), expect_trouble=True) as front:

        def load() -> None:
            for path in directory.glob("*.nar"):
                path.unlink()
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda number: disconnect_early(front, paths[number % 4]), range(16)))
                list(pool.map(lambda number: get(front, paths[number % 4]), range(16)))
            with upstream.fault(NARS, cut_after=100_000, ranges=False):
                get_all([(front, url_path(caches.store_paths[trees.STDLIB_NAME], b"os.py"))] * 8)

        load()
        (before,) = map(process_state, front.workers())
        load()

        def is_as_before() -> bool:
            (now,) = map(process_state, front.workers())
            # Some connections to the upstream may stay open; a leak would leave more after forty requests.
            return (
                now.threads <= before.threads
                and now.descriptors <= before.descriptors + 3
                and not now.files_in(directory)
            )

        until(is_as_before)


def disconnect_early(front: Front, path: str) -> None:
    connection = front.connect()
    connection.request("GET", path)
    connection.getresponse().read(10)
    connection.close()


def test_sigterm_ends_a_fill_without_readers(upstream: Upstream, run_front: RunFront, tmp_path: Path) -> None:
    """The server ends within 4 s, logs no error and leaves no files."""
    url = upstream.mount("end", write_cache(tmp_path / "upstream", {"end": random_files(1, 1_000_000)}))
    directory = tmp_path / "nars"
    with upstream.fault(NARS, rate=100_000), run_front(url, directory) as front:
        disconnect_early(front, url_of("end", "file-0"))
        assert len(list(directory.glob("*.part"))) == 1
        started = time.monotonic()
        front.process.terminate()
        front.process.wait()
        assert time.monotonic() - started < 4
    assert leftovers(directory) == set()
    assert list(directory.glob("*.nar")) == []


class TestKilled:
    """Three servers: a round needs two of them, while the worker of the third one restarts."""

    SIZE = 160_000  # bytes
    SECONDS = 0.15  # duration of one download

    @pytest.mark.proof
    def test_readers_of_other_servers_survive_a_killed_fill(
        self, upstream: Upstream, run_front: RunFront, tmp_path: Path
    ) -> None:
        rounds = proofs.length(6, 50)
        named = {f"killed-{number}": random_files(number, self.SIZE) for number in range(rounds)}
        url = upstream.mount("killed", write_cache(tmp_path / "upstream", named))
        directory, generator = tmp_path / "nars", random.Random(20240607)
        shape = Shape(threads=8, app="tests.e2e.cache_app:app")
        cut = 0
        with ExitStack() as stack, upstream.fault(NARS, rate=int(self.SIZE / self.SECONDS)):
            fronts = [
                stack.enter_context(run_front(url, directory, PRELOADED, shape=shape, expect_trouble=True))
                for _ in range(3)
            ]
            for number, (name, tree) in enumerate(named.items()):
                # A client of the killed worker may be cut; a client of the other server must get the file.
                victim, other = fronts[number % 3], fronts[(number + 1) % 3]
                for front in (victim, other):
                    until(partial(is_up, front))
                of_victim, of_other = self.round(victim, other, name, generator)
                for got, file in zip(of_victim, tree.values(), strict=True):
                    assert not got.complete or (got.status, got.body) == (200, file)
                    cut += not got.complete
                for got, file in zip(of_other, tree.values(), strict=True):
                    assert (got.status, got.body, got.complete) == (200, file, True), (number, got.status)
            until(lambda: not list(directory.glob("*.part")))
        NarCache(directory, size=lambda _: 1 << 30, max_fills=1).close()  # cleans up, as after a restart
        assert cut > rounds // 2  # the kills hit running downloads
        assert leftovers(directory) == set()
        assert wrong_entries(directory) == []
        assert len(list(directory.glob("*.nar"))) == rounds

    def round(
        self, victim: Front, other: Front, name: str, generator: random.Random
    ) -> tuple[list[Fetched], list[Fetched]]:
        """Start four readers on each of two servers, in random order, then kill the worker of ``victim``.

        Returns the results from ``victim`` and from ``other``.
        """
        (pid,) = victim.workers()
        order = [victim, other]
        generator.shuffle(order)
        killer = threading.Timer(generator.uniform(0.02, self.SECONDS + 0.05), os.kill, (pid, signal.SIGKILL))
        with ThreadPoolExecutor(8) as pool:
            results = {}
            for front in order:
                results[front.port] = [pool.submit(get, front, url_of(name, f"file-{file}")) for file in range(4)]
                time.sleep(generator.uniform(0, 0.02))
            killer.start()
        killer.join()
        return tuple([result.result() for result in results[front.port]] for front in (victim, other))  # type: ignore[return-value]


def is_up(front: Front) -> bool:
    return len(front.workers()) == 1 and get(front, "/healthz", timeout=5).status == 200


def test_the_cache_stays_within_its_limit(upstream: Upstream, run_front: RunFront, tmp_path: Path) -> None:
    """Four processes serve NARs of ten times the limit in total, requested concurrently and in random order."""
    size, limit = 400_000, 2_000_000
    named = {f"limit-{number}": random_files(number, size) for number in range(10 * limit // size)}
    url = upstream.mount("limit", write_cache(tmp_path / "upstream", named))
    directory, names = tmp_path / "nars", list(named)
    shape = Shape(workers=4, threads=8, app="tests.e2e.cache_app:app")
    directory.mkdir()
    directory.chmod(0o700)
    generator = random.Random(5)
    upstream.clear()
    requests = [(generator.choice(names), generator.randrange(4)) for _ in range(400)]
    with (
        SizeWatcher(directory).running() as sizes,
        run_front(url, directory, PRELOADED | {"NAR_CACHE_SIZE": str(limit)}, shape=shape) as front,
    ):

        def is_served(request: tuple[str, int]) -> bool:
            name, number = request
            got = get(front, url_of(name, f"file-{number}"))
            return (got.status, got.body) == (200, named[name][f"file-{number}"])

        with ThreadPoolExecutor(16) as pool:
            assert all(pool.map(is_served, requests))
        until(lambda: not list(directory.glob("*.part")))
        assert limit - 2 * size < sizes.size() <= limit + 10_000
    assert sizes.measurements > 50
    assert sizes.largest <= limit + size + 10_000
    assert upstream.count(NARS) < len(requests)
    assert wrong_entries(directory) == []
