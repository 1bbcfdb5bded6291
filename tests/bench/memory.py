"""Memory while a large file is streamed: the benchmark, and the process that it measures."""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.bench.inprocess import App
from tests.bench.material import CacheDirectory, write_file, write_tree
from tests.bench.report import MIB, Row, at_most
from tests.bench.setup import Setup

LIMIT = 32  # MiB


def memory(setup: Setup) -> Iterator[Row]:
    """Peak RSS above idle while a large file (--large) of a NAR is streamed."""
    upstream = CacheDirectory(setup.directory / "upstream")
    tree = setup.directory / "tree"
    write_file(tree / "large.bin", setup.large)
    write_file(tree / "small.txt", 1000)
    nar = write_tree(tree, setup.directory / "large.nar")
    for compression in ("zstd", "none"):
        packed = upstream.add(compression, nar, compression)
        for what, cache_dir in (("cache off", ""), ("cache on, cold", tempfile.mkdtemp(dir=setup.directory))):
            growth = memory_growth(upstream.url, str(packed.store_path), cache_dir, "/large.bin")
            yield at_most(
                f"peak RSS above idle, {setup.large // 1_000_000} MB, {compression}, {what}", growth / MIB, "MiB", LIMIT
            )


def memory_growth(url: str, store_path: str, cache_dir: str, target: str) -> int:
    """Return the result of `_measure` in a new process, in bytes."""
    command = [sys.executable, "-m", "tests.bench.memory", url, store_path, cache_dir, target]
    found: int = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return found


def status_of(pid: int | str, field: str) -> int:
    """Return a size from /proc/PID/status, in bytes."""
    match = re.search(rf"^{field}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) * 1024


def _measure(url: str, store_path: str, cache_dir: str, target: str) -> int:
    """Return how far the RSS of this process rises above its value after a HEAD request, in bytes.

    ``target`` is appended to the store path: a path, a query, or both.
    """
    app = App(url, Path(cache_dir) if cache_dir else None)
    try:
        assert app.request(f"{store_path}/small.txt", "HEAD").status == 200
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak: proc(5)
        idle = status_of("self", "VmRSS")
        path, _, query = target.partition("?")
        assert app.request(f"{store_path}{path}", query=query).status == 200
        return status_of("self", "VmHWM") - idle
    finally:
        app.close()


if __name__ == "__main__":
    print(_measure(*sys.argv[1:]))
