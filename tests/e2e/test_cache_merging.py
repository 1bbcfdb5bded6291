"""One download for many readers, over several processes; and what becomes of it when one of them is killed."""

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
    Got,
    Sizes,
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
RATE = 5_000_000  # bytes a second: the download takes longer than all else


@pytest.mark.parametrize("compression", ["zstd", "xz"])
def test_a_hundred_clients_and_one_download(
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
                since = time.monotonic()
                got = get_all([(front, path) for path in paths[:clients]])
                seconds.append(time.monotonic() - since)
            for answer, entry in zip(got, files, strict=False):
                assert (answer.status, answer.body) == (200, entry.source.read_bytes())
            assert upstream.count(NARS) == 1
            if clients == 100:
                upstream.clear()
                again = get_all([(front, path) for path in paths])
                assert [answer.body for answer in again] == [answer.body for answer in got]
                assert upstream.count(NARS) == 0
        assert leftovers(directory) == set()
    assert seconds[1] <= 1.5 * seconds[0]


def test_nothing_is_left_open(upstream: Upstream, run_front: RunFront, caches: NixCaches, tmp_path: Path) -> None:
    """Readers that come, stay, leave early or get errors: afterwards, as many descriptors and threads as before."""
    big = caches.store_paths[trees.BIG_NAME]
    paths = [url_path(big, name) for name in (b"a-first.txt", b"data.bin", b"later.bin", b"z-last.txt")]
    directory = tmp_path / "nars"
    with run_front(f"{upstream.url}/zstd", directory, shape=Shape(threads=8), expect_trouble=True) as front:

        def some_load() -> None:
            for path in directory.glob("*.nar"):
                path.unlink()
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda number: leave_early(front, paths[number % 4]), range(16)))
                list(pool.map(lambda number: get(front, paths[number % 4]), range(16)))
            with upstream.fault(NARS, cut_after=100_000, ranges=False):
                get_all([(front, url_path(caches.store_paths[trees.STDLIB_NAME], b"os.py"))] * 8)

        some_load()
        (before,) = map(process_state, front.workers())
        some_load()

        def is_as_before() -> bool:
            (now,) = map(process_state, front.workers())
            # A connection or two to the upstream may be kept; forty requests would leave more than that.
            return (
                now.threads <= before.threads
                and now.descriptors <= before.descriptors + 3
                and not now.files_in(directory)
            )

        until(is_as_before)


def leave_early(front: Front, path: str) -> None:
    connection = front.connect()
    connection.request("GET", path)
    connection.getresponse().read(10)
    connection.close()


def test_a_polite_end(upstream: Upstream, run_front: RunFront, tmp_path: Path) -> None:
    """A server that is stopped while a fill goes on, for nobody: it ends at once, quietly, and leaves nothing."""
    url = upstream.mount("end", write_cache(tmp_path / "upstream", {"end": random_files(1, 1_000_000)}))
    directory = tmp_path / "nars"
    with upstream.fault(NARS, rate=100_000), run_front(url, directory) as front:
        leave_early(front, url_of("end", "file-0"))
        assert len(list(directory.glob("*.part"))) == 1
        since = time.monotonic()
        front.process.terminate()
        front.process.wait()
        assert time.monotonic() - since < 4
    assert leftovers(directory) == set()
    assert list(directory.glob("*.nar")) == []


class TestKilled:
    """Three servers, so that the two that a round needs are up while the third one's worker starts again."""

    SIZE = 160_000
    SECONDS = 0.15  # for one download

    @pytest.mark.proof
    def test_in_the_middle_of_a_fill(self, upstream: Upstream, run_front: RunFront, tmp_path: Path) -> None:
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
                victim, other = fronts[number % 3], fronts[(number + 1) % 3]
                for front in (victim, other):
                    until(partial(is_up, front))
                theirs, ours = self.round(victim, other, name, generator)
                for got, file in zip(theirs, tree.values(), strict=True):
                    assert not got.whole or (got.status, got.body) == (200, file)
                    cut += not got.whole
                for got, file in zip(ours, tree.values(), strict=True):
                    assert (got.status, got.body, got.whole) == (200, file, True), (number, got.status)
            until(lambda: not list(directory.glob("*.part")))
        NarCache(directory, size=lambda _: 1 << 30, max_fills=1).close()  # a restart
        assert cut > rounds // 2  # it did hit them
        assert leftovers(directory) == set()
        assert wrong_entries(directory) == []
        assert len(list(directory.glob("*.nar"))) == rounds

    def round(self, victim: Front, other: Front, name: str, generator: random.Random) -> tuple[list[Got], list[Got]]:
        """Four readers in each, a random one of the two first; then a worker of the victim's dies."""
        (pid,) = victim.workers()
        order = [victim, other]
        generator.shuffle(order)
        killer = threading.Timer(generator.uniform(0.02, self.SECONDS + 0.05), os.kill, (pid, signal.SIGKILL))
        with ThreadPoolExecutor(8) as pool:
            answers = {}
            for front in order:
                answers[front.port] = [pool.submit(get, front, url_of(name, f"file-{file}")) for file in range(4)]
                time.sleep(generator.uniform(0, 0.02))
            killer.start()
        killer.join()
        return tuple([answer.result() for answer in answers[front.port]] for front in (victim, other))  # type: ignore[return-value]


def is_up(front: Front) -> bool:
    return len(front.workers()) == 1 and get(front, "/healthz", timeout=5).status == 200


def test_the_limit_holds(upstream: Upstream, run_front: RunFront, tmp_path: Path) -> None:
    """NARs of ten times the limit, asked of four processes at once, in no order, the same one often by several."""
    size, limit = 400_000, 2_000_000
    named = {f"limit-{number}": random_files(number, size) for number in range(10 * limit // size)}
    url = upstream.mount("limit", write_cache(tmp_path / "upstream", named))
    directory, names = tmp_path / "nars", list(named)
    shape = Shape(workers=4, threads=8, app="tests.e2e.cache_app:app")
    directory.mkdir()
    directory.chmod(0o700)
    generator = random.Random(5)
    upstream.clear()
    asked = [(generator.choice(names), generator.randrange(4)) for _ in range(400)]
    with (
        Sizes(directory).watching() as sizes,
        run_front(url, directory, PRELOADED | {"NAR_CACHE_SIZE": str(limit)}, shape=shape) as front,
    ):

        def one(wanted: tuple[str, int]) -> bool:
            name, number = wanted
            got = get(front, url_of(name, f"file-{number}"))
            return (got.status, got.body) == (200, named[name][f"file-{number}"])

        with ThreadPoolExecutor(16) as pool:
            assert all(pool.map(one, asked))
        until(lambda: not list(directory.glob("*.part")))
        assert limit - 2 * size < sizes.size() <= limit + 10_000
    assert sizes.looks > 50
    assert sizes.most <= limit + size + 10_000
    assert upstream.count(NARS) < len(asked)
    assert wrong_entries(directory) == []
