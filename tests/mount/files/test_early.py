"""Reads before the NAR is verified (--early): they are fast, and withdrawn if the NAR is wrong."""

import errno
import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import builders
from tests.builders import Tree
from tests.e2e.upstream import Upstream
from tests.mount.conftest import RunMount, write
from tests.mount.mounting import PLAIN, Asking, Mounted, ask, until
from tests.mount.samples import KEY, NARS, base, files_of, random_bytes, sample

MIB = 1 << 20
EARLY = "--early"
MODES = {"passthrough": (EARLY,), "plain": (EARLY, *PLAIN)}
LARGE: dict[str, Tree] = {
    "a": random_bytes(1, MIB),
    "b": random_bytes(2, 4 * MIB),
    "c": {"deep": random_bytes(3, MIB)},
    "d": b"the last one",
}

Serve = Callable[..., str]


@pytest.fixture(params=MODES)
def options(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return MODES[request.param]


def test_names_and_sizes_need_no_nar(serve: Serve, upstream: Upstream, run_mount: RunMount) -> None:
    with run_mount(serve({"one": LARGE}), EARLY) as mount:
        path = mount.path(base("one"))
        assert sorted(os.listdir(path)) == sorted(LARGE)
        assert [os.lstat(path / name).st_size for name in "abd"] == [MIB, 4 * MIB, 12]
        assert os.listdir(path / "c") == ["deep"]
        assert not os.path.lexists(path / "e")
        assert upstream.count(NARS) == 0


def test_bytes_that_have_arrived_can_be_read(
    serve: Serve, upstream: Upstream, run_mount: RunMount, options: tuple[str, ...]
) -> None:
    """The NAR stops in the middle of the second file."""
    with run_mount(serve({"one": LARGE}, compression="none"), *options) as mount:
        path, files = mount.path(base("one")), dict(files_of(LARGE))
        with upstream.fault(NARS, stall_after=3 * MIB):
            assert ask("cat", path / "a").output == files["a"]
            begun = ask("dd", f"if={path / 'b'}", "bs=128k", "count=1", "status=none")
            assert begun.output == files["b"][: 128 * 1024]
            blocked = [Asking("cat", path / name) for name in ("b", "c/deep", "d")]
            killed = Asking("cat", path / "d")
            time.sleep(0.5)
            assert all(each.waits for each in blocked)
            assert killed.kill() < 1
        for each, name in zip(blocked, ("b", "c/deep", "d"), strict=True):
            assert each.outcome().output == files[name]
        assert upstream.count(NARS) == 1


def test_all_files_of_a_path_can_be_read_concurrently(
    serve: Serve, run_mount: RunMount, options: tuple[str, ...]
) -> None:
    with run_mount(serve({"one": LARGE, "two": sample(2)}), *options) as mount:
        asking = {(tree, name): Asking("cat", mount.path(base(tree)) / name)
                  for tree, files in (("one", LARGE), ("two", sample(2))) for name, _ in files_of(files)}  # fmt: skip
        for (tree, name), each in asking.items():
            assert each.outcome().output == dict(files_of(LARGE if tree == "one" else sample(2)))[name]


def test_reads_go_on_after_the_worker_is_killed_during_a_fill(
    serve: Serve, upstream: Upstream, run_mount: RunMount, options: tuple[str, ...]
) -> None:
    with run_mount(serve({"one": LARGE}, compression="none"), *options) as mount:
        path, files = mount.path(base("one")), dict(files_of(LARGE))
        with upstream.fault(NARS, stall_after=3 * MIB, times=1), (path / "b").open("rb", buffering=0) as file:
            assert file.read(1000) == files["b"][:1000]
            blocked = Asking("cat", path / "d")
            until(lambda: mount.status()["waiting"], "the process waits")
            mount.kill_worker()
            assert blocked.outcome().output == files["d"]
            rest = bytearray()
            while chunk := file.read(MIB):
                rest += chunk
            assert rest == files["b"][1000:]


def tampered(
    tmp_path: Path, upstream: Upstream, tree: Tree, change: Callable[[dict[str, bytes]], None], name: str = "tampered"
) -> str:
    files = builders.binary_cache({"one": tree}, compression="none", secret_key=KEY)
    change(files)
    write(tmp_path / name, files)
    return upstream.mount(name, tmp_path / name)


def the(files: dict[str, bytes], word: str) -> str:
    return next(name for name in files if word in name)


def changed_at_the_end(files: dict[str, bytes]) -> None:
    """Change the contents of the last file after signing."""
    nar = the(files, "nar/")
    assert files[nar].count(b"the last one") == 1
    files[nar] = files[nar].replace(b"the last one", b"the evil one")


def is_withdrawn(mount: Mounted) -> bool:
    outcome = ask("cat", mount.path(base("one")) / "d")
    return outcome.status != 0 and outcome.output == b""


def is_refused(fd: int) -> bool:
    try:
        os.pread(fd, 4096, 0)
    except OSError as error:
        return error.errno in (errno.EIO, errno.ESTALE)
    return False


def test_a_wrong_nar_is_withdrawn(
    upstream: Upstream, run_mount: RunMount, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """After the NAR turns out to be wrong, nothing of it can be read, and open files give errors."""
    url = tampered(tmp_path, upstream, LARGE, changed_at_the_end)
    with run_mount(url, *options) as mount:
        path = mount.path(base("one"))
        with upstream.fault(NARS, stall_after=5 * MIB + MIB // 2), (path / "a").open("rb", buffering=0) as file:
            assert len(file.read(4096)) == 4096
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                assert mapped[:10] == dict(files_of(LARGE))["a"][:10]
        with (path / "a").open("rb", buffering=0) as file:
            until(lambda: is_withdrawn(mount), "the path is withdrawn")
            until(lambda: is_refused(file.fileno()), "its pages are dropped")
        for name in ("a", "b", "c/deep", "d"):
            outcome = ask("cat", path / name)
            assert outcome.status != 0, name
            assert outcome.output == b"" or name != "d"
        assert "does not match its hash or its listing" in mount.log_text()


FITTING: dict[str, Tree] = {
    "another name": {name: tree for name, tree in LARGE.items() if name != "d"} | {"e": b"the last one"},
    "sizes swapped": LARGE | {"a": LARGE["b"], "b": LARGE["a"]},
    "contents swapped": LARGE | {"c": b"the last one", "d": {"deep": random_bytes(3, MIB)}},
}
"""Listings of other NARs of the same length: only the NAR shows that they are wrong."""

LISTINGS: dict[str, Tree] = FITTING | {
    "other names": {"x": random_bytes(1, MIB), "y": b""},
    "other sizes": LARGE | {"d": b"the last one, and more"},
    "other kinds": LARGE | {"d": builders.link("/etc/passwd"), "c": b"no directory"},
    "a program": LARGE | {"d": builders.exe(b"the last one")},
    "more": LARGE | {"backdoor": builders.exe(b"#!/bin/sh\necho evil\n")},
}


@pytest.mark.parametrize("listing", LISTINGS)
def test_a_wrong_listing_is_corrected(
    upstream: Upstream, run_mount: RunMount, tmp_path: Path, listing: str, options: tuple[str, ...]
) -> None:
    """The listing is used until the NAR is complete."""

    def change(files: dict[str, bytes]) -> None:
        files[the(files, ".ls")] = builders.listing_json(LISTINGS[listing])

    with run_mount(tampered(tmp_path, upstream, LARGE, change), *options) as mount:
        path = mount.path(base("one"))
        shown = set(os.listdir(path))
        assert (
            shown == {builders.as_text(name) for name, _ in builders.entries(LISTINGS[listing])}
            or listing not in FITTING
        )
        for name, _ in files_of(LISTINGS[listing]):
            ask("cat", path / name)
        until(lambda: is_right(path), "the right tree is there", 20)


def is_right(path: Path) -> bool:
    if sorted(ask("ls", path).output.decode().split()) != sorted(LARGE):
        return False
    return all(ask("cat", path / name).output == data for name, data in files_of(LARGE))


@pytest.mark.parametrize("listing", [b"{", b"\0" * 1000, None], ids=["broken", "zeros", "none"])
def test_without_a_listing_lookups_wait_for_the_nar(
    upstream: Upstream, run_mount: RunMount, tmp_path: Path, listing: bytes | None
) -> None:
    def change(files: dict[str, bytes]) -> None:
        name = the(files, ".ls")
        del files[name]
        if listing is not None:
            files[name] = listing

    with run_mount(tampered(tmp_path, upstream, LARGE, change), EARLY) as mount:
        path = mount.path(base("one"))
        for name, data in files_of(LARGE):
            assert (path / name).read_bytes() == data
        assert upstream.count(NARS) == 1


def test_reads_fail_at_the_deadline_if_the_store_stops(
    serve: Serve, upstream: Upstream, run_mount: RunMount, options: tuple[str, ...]
) -> None:
    url = serve({"one": LARGE}, compression="none")
    with run_mount(url, *options, settings={"NAR_MOUNT_DEADLINE": "2"}) as mount:
        path = mount.path(base("one"))
        with upstream.fault(NARS, stall_after=MIB):
            failed = ask("cat", path / "d")
            assert "Input/output error" in failed.errors
            assert failed.seconds < 7
        until(lambda: ask("cat", path / "d").output == b"the last one", "the file is there")
