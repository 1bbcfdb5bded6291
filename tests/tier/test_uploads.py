"""Uploads in the background: they never delay the caller, and end with the process."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from narcore.errors import WriteError
from narcore.lookup.pathinfo import PathInfo, Trust
from narcore.stores.localwriter import LocalWriter
from narcore.tier import uploads as uploads_module
from narcore.tier.uploads import TierUploads
from tests import builders
from tests.tier.tiers import INFO, NARINFO_FILE, chunks, open_tier


@pytest.fixture
def uploads(tmp_path: Path) -> Iterator[TierUploads]:
    made = TierUploads(open_tier(tmp_path))
    yield made
    made.close()


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def cached(_info: PathInfo) -> Iterator[bytes]:
    return chunks()


def test_a_path_is_added_in_the_background(uploads: TierUploads, tmp_path: Path) -> None:
    uploads.offer(INFO, cached)
    wait_for((tmp_path / NARINFO_FILE).exists)


@pytest.mark.parametrize(
    "info",
    [
        replace(INFO, trust=Trust.STORE),
        replace(INFO, trust=Trust.UNCHECKED),
        replace(INFO, narinfo=builders.nar_info(INFO.narinfo.store_path, builders.nar(b"small"))),
    ],
)
def test_a_path_that_readers_would_not_use_is_not_added(uploads: TierUploads, tmp_path: Path, info: PathInfo) -> None:
    uploads.offer(info, cached)
    uploads.offer(INFO, cached)  # is added after the first one
    wait_for((tmp_path / NARINFO_FILE).exists)
    assert len(list(tmp_path.glob("*.narinfo"))) == 1
    assert len(list(tmp_path.glob("nar/*.index"))) == 1


def test_a_nar_that_is_not_cached_any_more_is_not_added(uploads: TierUploads, tmp_path: Path) -> None:
    asked = threading.Event()

    def evicted(_info: PathInfo) -> None:
        asked.set()

    uploads.offer(INFO, evicted)
    assert asked.wait(20)
    uploads.close()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_full_queue_drops_paths_without_waiting(
    uploads: TierUploads, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = threading.Event()

    def blocking(_info: PathInfo) -> Iterator[bytes]:
        blocked.wait(20)
        return chunks()

    for number in range(uploads_module.QUEUE_MAX + 2):
        path = builders.store_path(f"path-{number}")
        uploads.offer(replace(INFO, narinfo=replace(INFO.narinfo, store_path=path)), blocking)
    assert "wait for their upload" in caplog.text
    monkeypatch.setattr(uploads_module, "STOP_SECONDS", 20.0)
    threading.Timer(0.05, blocked.set).start()


def test_closing_interrupts_an_upload_and_leaves_nothing(tmp_path: Path) -> None:
    uploads = TierUploads(open_tier(tmp_path))
    started = threading.Event()

    def slow(_info: PathInfo) -> Iterator[bytes]:
        for chunk in chunks(size=1000):
            started.set()
            yield chunk
            time.sleep(0.01)

    uploads.offer(INFO, slow)
    assert started.wait(20)
    uploads.close()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_tier_that_can_not_be_written_to_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Full(LocalWriter):
        def has(self, name: str) -> bool:
            raise WriteError("the disk is full")

    writer = open_tier(tmp_path)
    writer.writer = Full(tmp_path)
    uploads = TierUploads(writer)
    for _ in range(3):
        uploads.offer(INFO, cached)
    wait_for(lambda: "the disk is full" in caplog.text)
    uploads.close()
    assert caplog.text.count("the disk is full") == 1
