"""Memory while a large file is streamed: the benchmark, and the process that it starts for it."""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.bench.inprocess import App
from tests.bench.material import Upstream, write_file, write_tree
from tests.bench.report import MIB, Row, at_most
from tests.bench.setup import Setup

LIMIT = 32


def memory(setup: Setup) -> Iterator[Row]:
    """Peak RSS above idle while a large file (--large) is streamed out of a NAR of that size."""
    upstream = Upstream(setup.directory / "upstream")
    tree = setup.directory / "tree"
    write_file(tree / "large.bin", setup.large)
    write_file(tree / "small.txt", 1000)
    nar = write_tree(tree, setup.directory / "large.nar")
    for compression in ("zstd", "none"):
        packed = upstream.add(compression, nar, compression)
        for what, cache_dir in (("cache off", ""), ("cache on, cold", tempfile.mkdtemp(dir=setup.directory))):
            grown = grown_in_a_process(upstream.url, str(packed.store_path), cache_dir, "/large.bin")
            yield at_most(
                f"peak RSS above idle, {setup.large // 1_000_000} MB, {compression}, {what}", grown / MIB, "MiB", LIMIT
            )


def grown_in_a_process(url: str, store_path: str, cache_dir: str, wanted: str) -> int:
    """What `_measure` finds in a process of its own, in bytes."""
    command = [sys.executable, "-m", "tests.bench.memory", url, store_path, cache_dir, wanted]
    found: int = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return found


def status_of(pid: int | str, field: str) -> int:
    """A size out of /proc/PID/status, in bytes."""
    match = re.search(rf"^{field}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) * 1024


def _measure(url: str, store_path: str, cache_dir: str, wanted: str) -> int:
    """How far the RSS of this process rises above what it is after a HEAD; ``wanted`` is a path below, or a query."""
    app = App(url, Path(cache_dir) if cache_dir else None)
    try:
        assert app.request(f"{store_path}/small.txt", "HEAD").status == 200
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew: proc(5)
        idle = status_of("self", "VmRSS")
        path, _, query = wanted.partition("?")
        assert app.request(f"{store_path}{path}", query=query).status == 200
        return status_of("self", "VmHWM") - idle
    finally:
        app.close()


if __name__ == "__main__":
    print(_measure(*sys.argv[1:]))
