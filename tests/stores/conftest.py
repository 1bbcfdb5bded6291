"""Servers and stores that close themselves, in an environment without proxies and netrc."""

import os
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest

from narcore.stores import HttpBinaryCacheStore
from narcore.stores.cafile import CA_VARIABLES
from tests.stores.flaky_server import FlakyServer, Script

CLOUDS = ("AWS_", "GOOGLE_", "GCE_", "AZURE_")


class Serve(Protocol):
    def __call__(self, script: Script, *, context: ssl.SSLContext | None = None) -> FlakyServer: ...


class OpenHttp(Protocol):
    def __call__(self, url: str, **options: Any) -> HttpBinaryCacheStore: ...


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in (*CA_VARIABLES, *(name for name in os.environ if name.startswith(CLOUDS))):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    # No credentials but those that a test gives, and no question to a metadata service that a test does not play.
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "CLOUDSDK_CONFIG"):
        monkeypatch.setenv(name, str(tmp_path / "no-credentials"))
    for name in ("AWS_EC2_METADATA_DISABLED", "NO_GCE_CHECK", "AZURE_SKIP_SIGNATURE"):
        monkeypatch.setenv(name, "true")


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def serve(closing: ExitStack) -> Serve:
    def start(script: Script, *, context: ssl.SSLContext | None = None) -> FlakyServer:
        return closing.enter_context(FlakyServer(script, context=context))

    return start


@pytest.fixture
def slept() -> list[float]:
    """What the stores of ``open_http`` would have slept."""
    return []


@pytest.fixture
def open_http(closing: ExitStack, slept: list[float]) -> OpenHttp:
    def make(url: str, **options: Any) -> HttpBinaryCacheStore:
        settings: dict[str, Any] = {"connect_timeout": 2, "read_timeout": 2, "sleep": slept.append, **options}
        store = HttpBinaryCacheStore(url, **settings)
        closing.callback(store.close)
        return store

    return make
