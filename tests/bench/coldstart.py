"""The cost of a first request: importing the app, and the time to the first byte of responses that need no file."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.bench.inprocess import App
from tests.bench.material import CacheDirectory, Packed, write_file, write_tree
from tests.bench.report import Row, alternate, at_most
from tests.bench.setup import Setup
from tests.bench.unpack import seconds_of

IMPORT_LIMIT = 250  # ms


def imports(setup: Setup) -> Iterator[Row]:
    """Milliseconds to import api.index, without the start of the interpreter."""
    run = partial(_run_python, setup.directory)
    run("import api.index")  # writes the byte code
    empty, loaded = alternate(
        max(7, setup.runs),
        lambda: seconds_of(partial(run, "pass")),
        lambda: seconds_of(partial(run, "import api.index")),
    )
    yield at_most("import api.index", (loaded - empty) * 1000, "ms", IMPORT_LIMIT)
    yield at_most("start of the interpreter, for comparison", empty * 1000, "ms")


def _run_python(directory: Path, code: str) -> None:
    environ = os.environ | {"NAR_CACHE_DIR": str(directory / "cache"), "NAR_CACHE_URL": directory.as_uri()}
    subprocess.run([sys.executable, "-c", code], env=environ, stderr=subprocess.DEVNULL, check=True)


def firstbyte(setup: Setup) -> Iterator[Row]:
    """Milliseconds to the first byte of a 404, a HEAD and a listing of a new store path, with and without ``.ls``."""
    upstream = CacheDirectory(setup.directory / "upstream")
    tree = setup.directory / "tree"
    write_file(tree / "large.bin", setup.size)
    for number in range(1000):
        write_file(tree / "docs" / f"page-{number}.html", 200)
    nar = write_tree(tree, setup.directory / "a.nar")
    with_listing = upstream.add("with", nar, "zstd")
    without = upstream.add("without", nar, "zstd", with_listing=False)
    requests = {
        "404": ("GET", "/nothing/here", 404),
        "HEAD": ("HEAD", "/docs/page-7.html", 200),
        "listing": ("GET", "/docs/?list", 200),
    }
    for what, (method, rest, status) in requests.items():
        quick, slow = alternate(
            setup.runs,
            *(_timed(setup, upstream, packed, method, rest, status) for packed in (with_listing, without)),
        )
        yield Row(
            f"first byte of a {what}: with .ls, against a NAR of {setup.size // 1_000_000} MB without .ls",
            f"{quick * 1000:,.1f} ms",
            f"{slow * 1000:,.1f} ms without",
            slow / quick,
        )


def _timed(
    setup: Setup, upstream: CacheDirectory, packed: Packed, method: str, rest: str, status: int
) -> Callable[[], float]:
    path, _, query = rest.partition("?")

    def run() -> float:
        app = App(upstream.url, Path(tempfile.mkdtemp(dir=setup.directory)))
        try:
            response = app.request(f"{packed.store_path}{path}", method, query)
        finally:
            app.close()
        assert response.status == status, response
        return response.first_byte

    return run
