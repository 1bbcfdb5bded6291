"""Fixtures of the tests that mount: binary caches written by a real Nix, and the HTTP server in front of them."""

import itertools
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests import builders, needs
from tests.e2e import nixcaches
from tests.e2e.nixcaches import NixCaches
from tests.e2e.upstream import Upstream
from tests.mount import mounting, programs
from tests.mount.mounting import Mounted
from tests.mount.programs import Programs
from tests.mount.samples import KEY

RunMount = Callable[..., AbstractContextManager[Mounted]]

TEST_SECONDS = 60

_LOGS: set[Path] = set()


@pytest.fixture(autouse=True)
def _time_limit() -> Iterator[None]:
    """End all mounts after TEST_SECONDS: a test that waits for a mount without a worker can't be interrupted otherwise."""
    alarm = threading.Timer(TEST_SECONDS, mounting.end_all)
    alarm.start()
    yield
    mounting.end_programs()
    alarm.cancel()
    alarm.join()


@pytest.fixture(scope="session")
def caches() -> NixCaches:
    return nixcaches.build()


@pytest.fixture(scope="session")
def made_programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    needs.programs(programs.TOOLS)
    return programs.build(tmp_path_factory.mktemp("programs"))


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as server:
        yield server


@pytest.fixture
def serve(upstream: Upstream, tmp_path: Path) -> Callable[..., str]:
    """Return a function that writes a binary cache of some trees, serves it, and returns its URL.

    The options are those of `builders.binary_cache`. The cache is signed with `KEY` unless ``secret_key`` is given.
    """
    numbers = itertools.count()

    def serve(trees: Mapping[str, builders.Tree], name: str = "", **options: Any) -> str:
        name = name or f"cache-{next(numbers)}"
        write(tmp_path / "served" / name, builders.binary_cache(trees, **{"secret_key": KEY} | options))
        return upstream.mount(name, tmp_path / "served" / name)

    return serve


def write(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write the files of a binary cache. Each file appears atomically, since the server may read it at the same time."""
    for name, data in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        part.write_bytes(data)
        part.rename(path)


@pytest.fixture(scope="session")
def run_mount(tmp_path_factory: pytest.TempPathFactory) -> RunMount:
    """Return a function that mounts a binary cache; see `mounting.mounted`. It trusts `KEY` unless ``key`` is given."""
    needs.fuse()

    def run(url: str, *options: str, key: str = str(KEY.public_key), **details: Any) -> AbstractContextManager[Mounted]:
        directory = tmp_path_factory.mktemp("mount")
        _LOGS.add(directory / "log")
        return mounting.mounted(directory, url, *options, key=key, **details)

    return run


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the log of the last mount to the report of a failed test."""
    report = yield
    if report.failed:
        latest = sorted(filter(Path.exists, _LOGS), key=lambda path: path.stat().st_mtime)[-1:]
        report.sections += [(f"log {path}", path.read_text(errors="replace")[-6000:]) for path in latest]
    return report
