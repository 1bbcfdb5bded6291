"""A server whose clients look at hostile source files: response times of other requests.

``python -m tests.bench.viewing PORT PATH...`` is the clients: a process that requests all pages at once, again and again.
"""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.bench.material import CacheDirectory, write_tree
from tests.bench.report import Row, at_most
from tests.bench.setup import Setup
from tests.bench.slowclients import probe
from tests.server.serving import fetch, serving

CLIENTS = 66
START_SECONDS = 2.0
PROBES = 100
PAUSE = 0.05  # seconds between two probes
SLOWEST_MS = 250.0
# The lines of files of 50 KB. Highlighting one takes longer than the limit, or makes a large page.
HOSTILE = {"html": "<!--", "css.in": '\\"', "as": "\\'", "awk": '\\"\\"\\"', "py": "a", "sp": ""}


def viewing(setup: Setup) -> Iterator[Row]:
    """66 requests at once for pages of hostile source files, again and again: duration of /healthz."""
    tree = setup.directory / "tree"
    tree.mkdir()
    names = [f"{number}.{suffix}" for number, suffix in enumerate([*HOSTILE] * (CLIENTS // len(HOSTILE)))]
    for name in names:
        line = HOSTILE[name.partition(".")[2]] + "\n"
        (tree / name).write_text(name + line * (50_000 // len(line)))
    upstream = CacheDirectory(setup.directory / "upstream")
    path = upstream.add("site", write_tree(tree, setup.directory / "site.nar"), "zstd").store_path
    with serving(setup.directory / "ours", upstream.url) as ours:
        fetch(ours.port, f"{path}/{names[0]}")  # so that the NAR is cached
        with _viewers(ours.port, [f"{path}/{name}?view" for name in names]):
            slowest = sorted(_probes(ours.port))[-2]
    yield at_most(
        f"/healthz beside {CLIENTS} hostile pages, slowest but one of {PROBES}", slowest * 1000, "ms", SLOWEST_MS
    )


def _probes(port: int) -> Iterator[float]:
    for _ in range(PROBES):
        yield probe(port)
        time.sleep(PAUSE)


@contextmanager
def _viewers(port: int, paths: list[str]) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-m", "tests.bench.viewing", str(port), *paths])
    try:
        time.sleep(START_SECONDS)
        yield
        assert process.poll() is None, "the clients failed"
    finally:
        process.kill()
        process.wait()


def _view(port: int, path: str, start: threading.Barrier) -> None:
    while True:
        start.wait()
        assert fetch(port, path, {"Accept": "text/html"}).status == 200


if __name__ == "__main__":
    _, port, *paths = sys.argv
    start = threading.Barrier(len(paths))
    for path in paths:
        threading.Thread(target=_view, args=(int(port), path, start)).start()
