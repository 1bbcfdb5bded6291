"""Fixtures of the end-to-end tests: binary caches, an HTTP server for them (upstream), and servers of the application (fronts)."""

import itertools
from collections.abc import Generator, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import pytest

from tests.e2e import fronts, nixcaches
from tests.e2e.client import Client
from tests.e2e.fronts import Front, Shape
from tests.e2e.nixcaches import NixCaches
from tests.e2e.upstream import Upstream

_LOGS: set[Path] = set()


@pytest.fixture(scope="session")
def caches() -> NixCaches:
    """Binary caches written by Nix. Skips the test if Nix or a compression tool is not installed."""
    return nixcaches.build()


@pytest.fixture(scope="session")
def upstream(caches: NixCaches) -> Iterator[Upstream]:
    """An HTTP server for all caches: ``/NAME`` is the cache NAME, ``/NAME.no-ls`` the same cache without listings."""
    with Upstream() as server:
        for name in (*nixcaches.CACHES, "gnu"):
            server.mount(name, caches.cache(name))
            server.mount(f"{name}.no-ls", caches.cache(name), hidden=("*.ls",))
        for coding in ("br", "gzip", "zstd"):
            headers = {"*.ls": {"Content-Encoding": coding}}
            server.mount(f"ls-{coding}.encoded", caches.cache(f"ls-{coding}"), headers=headers)
        yield server


class RunFront(Protocol):
    """Starts a front; see `fronts.running`."""

    def __call__(
        self,
        cache_url: str,
        cache_dir: Path | str = "off",
        settings: Mapping[str, str] | None = None,
        *,
        shape: Shape = fronts.ONE_PROCESS,
        expect_trouble: bool = False,
    ) -> AbstractContextManager[Front]:
        """``cache_dir`` is the directory of the disk cache, or ``off``; ``settings`` are further environment variables."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run ``test_http_*`` on every kind of front, and all other tests on gunicorn only. A test may choose its own fronts."""
    chosen = any(mark.args[0] == "front_kind" for mark in metafunc.definition.iter_markers("parametrize"))
    if "front_kind" in metafunc.fixturenames and not chosen:
        on_all_fronts = metafunc.module.__name__.rpartition(".")[2].startswith("test_http_")
        metafunc.parametrize("front_kind", [*fronts.FRONTS] if on_all_fronts else ["gunicorn"], scope="session")


@pytest.fixture(scope="session")
def run_front(front_kind: str, tmp_path_factory: pytest.TempPathFactory) -> RunFront:
    """Starts fronts, and keeps their logs for `pytest_runtest_makereport`."""
    numbers = itertools.count()
    logs = tmp_path_factory.mktemp("fronts")

    def run(
        cache_url: str,
        cache_dir: Path | str = "off",
        settings: Mapping[str, str] | None = None,
        *,
        shape: Shape = fronts.ONE_PROCESS,
        expect_trouble: bool = False,
    ) -> AbstractContextManager[Front]:
        log = logs / f"{next(numbers)}.log"
        _LOGS.add(log)
        environ = {"NAR_CACHE_URL": cache_url, "NAR_CACHE_DIR": str(cache_dir)} | dict(settings or {})
        return fronts.running(environ, log, kind=front_kind, shape=shape, expect_trouble=expect_trouble)

    return run


@pytest.fixture(scope="session")
def site(upstream: Upstream, run_front: RunFront, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """The front that all ``test_http_*`` share, on a cache with listings."""
    with run_front(f"{upstream.url}/zstd", tmp_path_factory.mktemp("site")) as front:
        yield front


@pytest.fixture
def client(site: Front) -> Iterator[Client]:
    """A client of `site`."""
    with Client(site) as client:
        yield client


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the two most recent logs of fronts to the report of a test that fails."""
    report = yield
    if report.failed:
        latest = [
            path
            for path in sorted(filter(Path.exists, _LOGS), key=lambda path: path.stat().st_mtime)
            if path.stat().st_size
        ][-2:]
        report.sections += [(f"log {path}", path.read_text(errors="replace")[-6000:]) for path in latest]
    return report
