"""``get``: the copy equals the source tree, whatever the source of its bytes, and only appears when it is complete."""

import os
import re
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest

from narcore.errors import StoreUnavailable
from narcore.formats.listing import NarListing, Node
from narcore.formats.nar import parse_nar
from narcore.formats.storepath import StorePath
from narcore.nars.accessor import NarAccessor, NarBytes
from narserve.commands.get import by_file
from narserve.get.treewriter import TreeWriter
from narserve.session.instance import Instance
from narserve.session.session import LocatedNode, Opened
from tests.builders import COMPRESS, Tree, binary_cache, exe, hash_part, link, nar, store_path
from tests.commands.running import InProcess, program, start, stored
from tests.e2e import trees
from tests.e2e.fronts import Front
from tests.e2e.links import HELLO, LINKS_NAME
from tests.e2e.nixcaches import NixCaches
from tests.e2e.upstream import Upstream


class Fact(NamedTuple):
    kind: str
    executable: bool
    target: bytes
    contents: bytes


def facts(root: Path) -> dict[bytes, Fact]:
    """Return all properties of a tree that a NAR can hold."""
    found = {}
    for entry in trees.walk(root):
        contents = entry.source.read_bytes() if entry.kind == "regular" else b""
        found[entry.path] = Fact(entry.kind, entry.executable, entry.target, contents)
    return found


WAYS = ("through the cache", "one pass", "instance")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", trees.SPECS)
def test_every_tree_equals_its_source(cli: InProcess, caches: NixCaches, instance: Front, way: str, name: str) -> None:
    path = caches.store_paths[name]
    cli.use(caches.cache("zstd"), NAR_CACHE_DIR="off" if way == "one pass" else os.environ["NAR_CACHE_DIR"])
    if way == "instance":
        path = instance.url + path.replace("?", "%3F")
    if way == "through the cache":
        cli.use(caches.cache("ls-no-offsets"))
        for file in [entry for entry in caches.entries(name) if entry.kind == "regular"][:1]:
            cli.ok("cat", f"{path}/{os.fsdecode(file.path)}")  # now the NAR is cached
    done = cli.ok("get", path)
    result = Path(name)
    assert done.lines == [name]
    assert facts(result) == facts(caches.tree(name))
    assert os.listdir() == [name]


def test_modes_and_times_are_set(cli: InProcess, caches: NixCaches) -> None:
    cli.use(caches.cache("zstd"))
    cli.ok("get", caches.store_paths[HELLO])
    modes = {stat.S_IMODE((Path(HELLO) / name).stat().st_mode) for name in ("bin/hello", "lib", "")}
    assert modes == {0o755}
    assert stat.S_IMODE((Path(HELLO) / "share/doc/hello/README").stat().st_mode) == 0o644
    times = {path.lstat().st_mtime_ns for path in (Path(HELLO), *Path(HELLO).rglob("*"))}
    assert times == {10**9}


@pytest.mark.parametrize("cache", ["none", "xz", "xz-blocks"])
@pytest.mark.parametrize("cache_dir", ["on", "off"])
def test_parts_of_a_store_path_equal_their_source(
    cli: InProcess, caches: NixCaches, cache: str, cache_dir: str
) -> None:
    cli.use(caches.cache(cache), **({"NAR_CACHE_DIR": "off"} if cache_dir == "off" else {}))
    hello, links = caches.store_paths[HELLO], caches.store_paths[LINKS_NAME]
    cli.ok("get", f"{hello}/share/doc")
    assert facts(Path("doc")) == facts(caches.tree(HELLO) / "share/doc")
    cli.ok("get", f"{hello}/bin/hello", "it")
    assert facts(Path("it")) == facts(caches.tree(HELLO) / "bin/hello")
    cli.ok("get", f"{hello}/bin/hi")
    assert os.readlink("hi") == "hello"  # noqa: PTH115
    cli.ok("get", f"{hello}/bin/hi/", "followed")
    assert facts(Path("followed")) == facts(caches.tree(HELLO) / "bin/hello")
    cli.ok("get", f"{links}/to-dir/deep")
    assert facts(Path("deep")) == facts(caches.tree(LINKS_NAME) / "sub/deep")
    cli.ok("get", f"{links}/other-dir/")
    assert facts(Path("share")) == facts(caches.tree(HELLO) / "share")
    assert cli("get", f"{hello}/bin/nope").code == 1
    assert cli("get", f"{links}/etc/").code == 1
    assert sorted(os.listdir()) == ["deep", "doc", "followed", "hi", "it", "share"]


def test_dest_is_a_name_or_a_directory(cli: InProcess, caches: NixCaches) -> None:
    cli.use(caches.cache("zstd"))
    hello = caches.store_paths[HELLO]
    Path("a").mkdir()
    assert cli.ok("get", f"{hello}/bin", "a/").lines == ["a/bin"]
    assert cli.ok("get", f"{hello}/bin", "a/b").lines == ["a/b"]
    assert cli.ok("get", f"{hello}/bin", "a/..").lines == ["a/../bin"]
    assert sorted(os.listdir("a")) == ["b", "bin"]
    refused = cli("get", f"{hello}/bin", "nowhere/b")
    assert (refused.code, "mkdir -p" in refused.err) == (2, True)
    refused = cli("get", f"{hello}/bin", "/proc/")
    assert (refused.code, refused.err.startswith("nar-serve: /proc/: ")) == (3, True)


def test_an_existing_destination_is_not_changed(cli: InProcess, caches: NixCaches) -> None:
    cli.use(caches.cache("zstd"))
    hello = caches.store_paths[HELLO]
    assert cli.ok("get", hello, "x").lines == cli.ok("get", hello, "x").lines  # a copy with the right hash is accepted
    (Path("x") / "more").write_text("my own data")
    Path("y").write_text("my own")
    Path("z").symlink_to("nowhere")
    for name in ("x", "y", "z"):
        refused = cli("get", hello, name)
        assert (refused.code, f"{name} already exists" in refused.err) == (2, True)
    assert (Path("y").read_text(), (Path("x") / "more").read_text(), Path("nowhere").exists()) == (
        "my own",
        "my own data",
        False,
    )
    assert sorted(os.listdir()) == ["x", "y", "z"]


# --- interruptions


def test_the_next_run_completes_an_interrupted_copy(cli: InProcess, caches: NixCaches) -> None:
    """The store cuts the connection. The partial copy does not appear at the destination, and the next run completes it."""
    with Upstream() as upstream:
        cli.use(upstream.mount("none", caches.cache("none")), NAR_CACHE_DIR="off")
        with upstream.fault("*.nar", status=501), upstream.fault("*.nar", cut_after=12 << 20, times=1):
            done = cli("get", caches.store_paths[trees.BIG_NAME])
        assert done.code == 3
        [staging] = os.listdir()
        assert staging in done.err
        assert (Path(staging) / "root/a-first.txt").read_bytes() == b"in front of it\n"
        first = (Path(staging) / "root/a-first.txt").stat()
        cli.ok("get", caches.store_paths[trees.BIG_NAME])
    assert os.listdir() == [trees.BIG_NAME]
    assert facts(Path(trees.BIG_NAME)) == facts(caches.tree(trees.BIG_NAME))
    assert (Path(trees.BIG_NAME) / "a-first.txt").stat().st_ino == first.st_ino


def wait_for(process: subprocess.Popen[bytes], directory: Path) -> None:
    """Wait until a ``get`` of the big tree writes its large file."""
    while not [*directory.glob(".*.part/root/data.bin")]:
        assert process.poll() is None
        time.sleep(0.01)


def test_ctrl_c_stops_immediately_and_the_next_run_continues(caches: NixCaches, tmp_path: Path) -> None:
    path = caches.store_paths[trees.BIG_NAME]
    with Upstream() as upstream:
        settings = {"NAR_CACHE_URL": upstream.mount("none", caches.cache("none")), "NAR_CACHE_DIR": "off"}
        with (
            upstream.fault("*.nar", stall_after=9 << 20),
            start("get", path, settings=settings, cwd=tmp_path) as process,
        ):
            wait_for(process, tmp_path)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=10)
        assert (process.returncode, out) == (-signal.SIGINT, b"")
        assert re.fullmatch(rb"nar-serve: the partial copy is kept in \.big\..*\.part; run the same command .*\n", err)
        assert program("get", path, settings=settings, cwd=tmp_path).code == 0
    assert facts(tmp_path / trees.BIG_NAME) == facts(caches.tree(trees.BIG_NAME))


class Recorder:
    """An accessor over a NAR in memory that records its reads: file, start, stop."""

    def __init__(self, tree: Tree) -> None:
        self.reads: list[tuple[str, int, int]] = []
        self._nar = nar(tree)
        self.accessor = NarAccessor(
            store_path("x"),
            NarListing.from_events(parse_nar([self._nar])),
            self._read,
            is_verified=True,
            is_cached=lambda: False,
        )

    def _read(self, node: Node, start: int, stop: int) -> NarBytes:
        self.reads.append((node.name, start, stop))
        return _Bytes(self._nar[node.nar_offset + start : node.nar_offset + stop])


class _Bytes:
    is_verified = True

    def __init__(self, data: bytes) -> None:
        self.length = len(data)
        self._data = data

    def __iter__(self) -> Iterator[bytes]:
        yield self._data

    def close(self) -> None:
        pass


def test_only_missing_bytes_are_fetched(tmp_path: Path) -> None:
    tree: dict[str, Tree] = {
        "begun": b"0123456789",
        "done": b"complete",
        "exe": exe(b"now executable"),
        "link": link("new"),
        "none": b"",
    }
    existing = {"begun": b"0123", "done": b"complete", "exe": b"now executable", "none": b"longer than it should be"}
    top = tmp_path / "root"
    top.mkdir()
    for name, data in existing.items():
        (top / name).write_bytes(data)
    (top / "link").symlink_to("old")
    recorder = Recorder(tree)
    place = LocatedNode(Opened(store_path("x"), recorder.accessor), recorder.accessor.listing.root, "")
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with closing(TreeWriter(fd)) as writer:
            by_file(place, writer)
    finally:
        os.close(fd)
    assert recorder.reads == [("begun", 4, 10), ("exe", 0, 14)]
    expected = {
        b"": b"",
        b"begun": b"0123456789",
        b"done": b"complete",
        b"exe": b"now executable",
        b"link": b"",
        b"none": b"",
    }
    assert {path: fact.contents for path, fact in facts(top).items()} == expected
    assert facts(top)[b"exe"].executable
    assert facts(top)[b"link"].target == b"new"


def test_a_concurrent_get_of_the_same_destination_is_refused(cli: InProcess, caches: NixCaches, tmp_path: Path) -> None:
    path = caches.store_paths[trees.BIG_NAME]
    with Upstream() as upstream:
        store = upstream.mount("none", caches.cache("none"))
        cli.use(store, NAR_CACHE_DIR="off")
        settings = {"NAR_CACHE_URL": store, "NAR_CACHE_DIR": "off"}
        with (
            upstream.fault("*.nar", stall_after=9 << 20),
            start("get", path, settings=settings, cwd=Path.cwd()) as process,
        ):
            wait_for(process, Path.cwd())
            second = cli("get", path)
            process.kill()
            process.communicate()
    assert (second.code, "another nar-serve" in second.err, second.out) == (3, True, b"")


def test_an_interrupted_copy_from_an_instance_continues_file_by_file(
    cli: InProcess, caches: NixCaches, instance: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = caches.nar(HELLO)

    def broken(_self: Instance, _store_path: StorePath, _path: str) -> Iterator[bytes]:
        yield whole[:2000]
        raise StoreUnavailable("broken off")

    monkeypatch.setattr(Instance, "nar", broken)
    url = instance.url + caches.store_paths[HELLO]
    assert cli("get", url).code == 3
    begun = (Path(os.listdir()[0]) / "root/bin/hello").stat()
    monkeypatch.setattr(Instance, "nar", None)
    cli.ok("get", url)
    assert facts(Path(HELLO)) == facts(caches.tree(HELLO))
    assert (Path(HELLO) / "bin/hello").stat().st_ino == begun.st_ino


def test_an_instance_without_nars_is_read_file_by_file(
    cli: InProcess, caches: NixCaches, instance: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Instance, "nar", lambda *_: None)
    cli.ok("get", f"{instance.url}{caches.store_paths[trees.NAMES_NAME]}")
    assert facts(Path(trees.NAMES_NAME)) == facts(caches.tree(trees.NAMES_NAME))


# --- wrong data from a store


def test_a_nar_with_a_wrong_hash_leaves_nothing(cli: InProcess, tmp_path: Path) -> None:
    files = binary_cache({"x": {"a": b"good" * 9, "b": b"and so on"}}, compression="none", listings=False)
    [url] = [name for name in files if name.startswith("nar/")]
    files[url] = files[url].replace(b"good", b"evil")
    store = stored(tmp_path / "store", files)
    for cache_dir in ("off", str(tmp_path / "nars")):
        cli.use(store, NAR_CACHE_DIR=cache_dir)
        done = cli("get", hash_part("x"))
        assert (done.code, done.out) == (1, b"")
        assert "NarHash" in done.err
        assert os.listdir() == []


def test_wrong_data_soon_after_the_requested_part_is_detected(cli: InProcess, tmp_path: Path) -> None:
    tree: dict[str, Tree] = {"a": {"f": b"requested"}, "b": b"good" * 9}
    files = binary_cache({"x": tree})
    [url] = [name for name in files if name.startswith("nar/")]
    files[url] = COMPRESS["zstd"](nar({"a": {"f": b"requested"}, "b": b"evil" * 9}))
    cli.use(stored(tmp_path / "store", files), NAR_CACHE_DIR="off")
    done = cli("get", f"{hash_part('x')}/a")
    assert (done.code, "NarHash" in done.err, os.listdir()) == (1, True, [])


def test_a_listing_of_another_tree_is_detected(cli: InProcess, tmp_path: Path) -> None:
    """The NAR is good, and the listing is of another tree of the same size: a listed file that the NAR lacks is an error."""
    files = binary_cache({"x": {"a": {"f": b"1"}}, "y": {"b": {"f": b"1"}}})
    files[f"{hash_part('x')}.ls"] = files[f"{hash_part('y')}.ls"]
    cli.use(stored(tmp_path / "store", files), NAR_CACHE_DIR="off")
    assert cli.ok("ls", hash_part("x")).lines == ["./b"]
    done = cli("get", f"{hash_part('x')}/b")
    assert (done.code, "listing" in done.err, os.listdir()) == (1, True, [])
    cli.ok("get", hash_part("x"))
    assert os.listdir("x") == ["a"]
