"""Fixtures for tests of the command line: real binary caches, an instance that serves them, and a way to run commands."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands.running import InProcess
from tests.e2e import fronts, nixcaches
from tests.e2e.fronts import Front
from tests.e2e.nixcaches import NixCaches


@pytest.fixture(scope="session")
def caches() -> NixCaches:
    """Binary caches written by a real Nix. Skips the test if Nix or a compression tool is not installed."""
    return nixcaches.build()


@pytest.fixture(scope="session")
def instance(caches: NixCaches, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """A running nar-serve that serves two of the binary caches."""
    directory = tmp_path_factory.mktemp("instance")
    stores = " ".join(caches.cache(name).as_uri() for name in ("zstd", "gnu"))
    with fronts.running(
        {"NAR_CACHE_URL": stores, "NAR_CACHE_DIR": str(directory / "cache")}, directory / "log"
    ) as front:
        yield front


@pytest.fixture
def cli(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> InProcess:
    """Runs commands in this process, in an empty working directory, with its own disk cache, and without a store at first."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("NAR_CACHE_DIR", str(tmp_path / "nars"))
    monkeypatch.setenv("NAR_CACHE_URL", (tmp_path / "no-cache").as_uri())
    return InProcess(capfdbinary, monkeypatch)
