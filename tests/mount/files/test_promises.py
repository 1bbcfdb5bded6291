"""If a store's listing says that a store path is a directory, a lookup does not wait for the NAR, and shows nothing of the NAR."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import builders
from tests.builders import Tree
from tests.e2e.upstream import Upstream
from tests.mount.conftest import RunMount, write
from tests.mount.mounting import OVERLAY, Asking, Mounted, ask, container, until
from tests.mount.samples import KEY, NARS, base, files_of, sample

SETTINGS = {"NAR_MOUNT_DEADLINE": "1"}
SOON = 5  # seconds: half of the deadline, at which all requests fail

Serve = Callable[..., str]


@pytest.fixture
def stalled(serve: Serve, upstream: Upstream) -> tuple[str, ExitStack]:
    """A store that stalls in the middle of the NAR of ``one``, and a stack that ends the fault when it is closed."""
    url, stack = serve({"one": sample(1), "two": sample(2)}, compression="none"), ExitStack()
    nar = builders.nar_info(builders.store_path("one"), builders.nar(sample(1)), compression="none").nar_hash.nix32
    stack.enter_context(upstream.fault(f"*{nar}*", stall_after=2000))
    return url, stack


def test_processes_that_look_up_the_same_name_can_be_killed(
    stalled: tuple[str, ExitStack], run_mount: RunMount, upstream: Upstream
) -> None:
    url, fault = stalled
    with run_mount(url) as mount:
        path = mount.path(base("one"))
        commands: list[tuple[str | Path, ...]] = [
            ("stat", path),
            ("ls", path),
            ("cat", path / "a-first"),
            ("stat", path),
        ]
        waiting = [Asking(*command) for command in commands]
        until(lambda: mount.status()["waiting"] == len(waiting), "each process waits for the worker")
        assert all(asking.kill() < SOON for asking in waiting)
        patient = Asking("cat", path / "large")
        fault.close()
        assert patient.outcome().output == dict(files_of(sample(1)))["large"]
        assert upstream.count(NARS) == 1


def test_processes_that_wait_in_an_overlay_can_be_killed(
    stalled: tuple[str, ExitStack], run_mount: RunMount, tmp_path: Path
) -> None:
    url, fault = stalled
    with run_mount(url) as mount:
        cat = f'cat "$root/nix/store/{base("one")}/a-first" & echo $!; '
        pod = Asking(
            *container(tmp_path / "pod", mount, OVERLAY + cat * 3 + 'for job in $(jobs -p); do echo "$job"; done; wait')
        )
        until(lambda: mount.status()["waiting"] == 3, "each process waits for the worker")
        assert pod.process.stdout is not None
        killed = [int(pod.process.stdout.readline()) for _ in range(3)][:2]
        start = time.monotonic()
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        until(lambda: mount.status()["waiting"] == 1, "the killed processes are gone")
        assert time.monotonic() - start < SOON
        fault.close()
        assert pod.outcome().output == b"first of 1\n"


def test_creating_a_file_in_the_root_blocks_no_lookup(stalled: tuple[str, ExitStack], run_mount: RunMount) -> None:
    """Before the kernel refuses to create the file, it takes the lock of the root directory."""
    url, fault = stalled
    with run_mount(url) as mount, fault:
        waiting = Asking("cat", mount.path(base("one")) / "a-first")
        until(lambda: mount.status()["waiting"] == 1, "the process waits")
        for command in (("touch", mount.target / "new"), ("mkdir", mount.target / "new")):
            assert "Read-only file system" in ask(*command, seconds=SOON).errors
        assert ask("cat", mount.path(base("two")) / "a-first", seconds=SOON).output == b"first of 2\n"
        assert waiting.waits


def test_nothing_of_an_unverified_path_is_visible(serve: Serve, upstream: Upstream, run_mount: RunMount) -> None:
    """Neither this worker nor the next one lists the path before it has been verified."""
    url = serve({"one": sample(1)}, compression="none")
    with run_mount(url, settings=SETTINGS) as mount:
        path = mount.path(base("one"))
        with upstream.fault(NARS, patch=(1000, b"wrong")):
            for _ in range(2):
                for command in (("stat", path), ("ls", path), ("cat", path / "a-first"), ("test", "-d", path)):
                    outcome = ask(*command)
                    assert outcome.status
                    assert not outcome.output
                assert os.listdir(mount.target) == []
                mount.wait_for_successor(mount.kill_worker())
        until(lambda: ask("stat", path).status == 0, "the path is there")
        assert os.listdir(mount.target) == [path.name]
        mount.wait_for_successor(mount.kill_worker())
        assert os.listdir(mount.target) == [path.name]


def test_a_listing_with_the_wrong_kind_is_corrected(run_mount: RunMount, upstream: Upstream, tmp_path: Path) -> None:
    """A file is listed as a directory, and a directory as a file."""
    trees: dict[str, Tree] = {"file": b"contents\n", "directory": sample(1)}
    wrong = {"file": builders.listing_json(sample(1)), "directory": builders.listing_json(b"contents\n")}
    files = builders.binary_cache(trees, secret_key=KEY)
    files |= {f"{builders.store_path(name).hash_part}.ls": listing for name, listing in wrong.items()}
    write(tmp_path / "wrong", files)
    with run_mount(upstream.mount("wrong", tmp_path / "wrong")) as mount:
        file, directory = mount.path(base("file")), mount.path(base("directory"))
        until(lambda: ask("cat", file).output == b"contents\n", "it is the file")
        assert ask("stat", "--format=%F", file).output == b"regular file\n"
        assert sorted(os.listdir(directory)) == sorted(sample(1))
        assert sorted(os.listdir(mount.target)) == sorted([file.name, directory.name])


def test_a_promised_path_that_disappears_is_missing(
    serve: Serve, upstream: Upstream, run_mount: RunMount, tmp_path: Path
) -> None:
    """A listing said that the path is a directory, but its NAR was never fetched."""
    url = serve({"one": sample(1)}, "store")
    with run_mount(url, settings=SETTINGS) as mount:
        path = mount.path(base("one"))
        with upstream.fault(NARS, status=500):
            assert "Input/output error" in ask("stat", path).errors
        for file in (tmp_path / "served/store").rglob("*"):
            if file.is_file() and file.name != "nix-cache-info":
                file.unlink()
        mount.wait_for_successor(mount.kill_worker())  # the old worker has cached the narinfo
        assert "No such file or directory" in ask("stat", path).errors
        assert os.listdir(mount.target) == []


def test_a_store_without_listings_is_served(run_mount: RunMount, upstream: Upstream, tmp_path: Path) -> None:
    """The first lookup of a name waits for the NAR."""
    files = builders.binary_cache({"one": sample(1)}, compression="none", secret_key=KEY)
    write(tmp_path / "plain", {name: data for name, data in files.items() if not name.endswith(".ls")})
    with run_mount(upstream.mount("plain", tmp_path / "plain")) as mount:
        assert_contents(mount, "one", sample(1))


def assert_contents(mount: Mounted, name: str, tree: dict[str, Tree]) -> None:
    for file, data in files_of(tree):
        assert (mount.path(base(name)) / file).read_bytes() == data
