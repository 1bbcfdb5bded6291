"""The server under attack: ``nar-serve serve`` with 2 workers of 32 threads, as its users start it, and a warm disk cache."""

import random
import resource
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests import ROOT
from tests.bench.memory import status_of
from tests.builders import binary_cache, store_path
from tests.server.attack.probing import Probe
from tests.server.nginxfront import free_port, nginx
from tests.server.serving import Serving, eventually, serving

SMALL_FILE = f"{store_path('small-1')}/small.txt"
SMALL_DATA = b"0123456789abcde\n" * 256  # 4 KB
LARGE_FILE = f"{store_path('large-1')}/large.bin"
LARGE_SIZE = 50_000_000
HEALTHZ = "/healthz"
HEALTHZ_BODY = b"OK\n"

USUAL_DESCRIPTORS = 1024  # the soft limit of open files that Linux and systemd give to a process


class Site:
    """A binary cache in ``directory``, and a disk cache that has its NARs after `warm_up`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.large_data = random.Random(14).randbytes(LARGE_SIZE)
        trees = {"small-1": {"small.txt": SMALL_DATA}, "large-1": {"large.bin": self.large_data}}
        self.store_url = str(directory / "store")
        write_cache(directory / "store", binary_cache(trees))
        with self.server() as server:
            warm_up(server)

    @contextmanager
    def server(self, **settings: str) -> Iterator[Serving]:
        """Run the server; its disk cache is that of the other servers of this site."""
        settings = {"NAR_CACHE_SIZE": "2G", "NAR_WORKERS": "2", "NAR_THREADS": "32", "NAR_STOP_SECONDS": "5"} | settings
        with ExitStack() as stack:
            with usual_descriptor_limit():
                server = stack.enter_context(serving(self.directory / "server", self.store_url, settings=settings))
            server.workers()
            yield server

    @contextmanager
    def behind_nginx(self, port: int) -> Iterator[int]:
        """Run nginx with deploy/nginx.conf before the server at ``port``; returns the port of nginx."""
        front = free_port()
        config = (ROOT / "deploy" / "nginx.conf").read_text()
        directory = self.directory / f"nginx-{front}"
        for old, new in (
            ("listen 80;", f"listen 127.0.0.1:{front} backlog=2048;"),
            ("127.0.0.1:8383", f"127.0.0.1:{port}"),
            ("/var/cache/nginx/nar-serve", f"{directory}/cache"),
        ):
            assert old in config
            config = config.replace(old, new)
        with nginx(directory, config, front, connections=8192):
            yield front

    def cached_file(self) -> Path:
        """Return the file of the disk cache that has the large NAR."""
        return max((self.directory / "server" / "nars").glob("*.nar"), key=lambda path: path.stat().st_size)


def probes(version: str = "1.1") -> list[Probe]:
    """Return the two requests that must be answered during every attack: /healthz, and a cached file of 4 KB."""
    return [
        Probe(HEALTHZ, HEALTHZ_BODY, version),
        Probe(SMALL_FILE, SMALL_DATA, version),
    ]


def write_cache(directory: Path, files: dict[str, bytes]) -> None:
    """Write the files of a binary cache."""
    for name, content in files.items():
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def warm_up(server: Serving) -> None:
    """Request both files until they come from the disk cache."""
    for path in (SMALL_FILE, LARGE_FILE):
        eventually(lambda path=path: _is_on_disk(server, path), 30)  # type: ignore[misc]


def _is_on_disk(server: Serving, path: str) -> bool:
    before = len(server.access_log())
    assert server.get(path).status == 200
    line = eventually(lambda: server.access_log()[before:])[0]
    return " disk " in line


@contextmanager
def usual_descriptor_limit() -> Iterator[None]:
    """Lower the soft limit of open files, as processes usually get it, for the processes that start meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, USUAL_DESCRIPTORS), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def rss(server: Serving) -> int:
    """Return the sum of the RSS of all processes of the server, in bytes."""
    return sum(status_of(pid, "VmRSS") for pid in (server.process.pid, *server.workers()))
