import gc
import json
import lzma
import random
import re
import time
import tracemalloc
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narcore.errors import ListingError
from narcore.formats import listing as listing_module
from narcore.formats.listing import Kind, ListingBuilder, NarListing, Node, contents_prefix
from narcore.formats.nar import Directory, DirectoryEnd, End, Regular, Symlink, parse_nar
from narcore.formats.narinfo import NarInfo
from tests.builders import Exe, Link, Tree, as_text, entries, events, exe, link, listing, listing_json, nar
from tests.realnix import RealNix

BIN: Mapping[bytes, Tree] = {
    b"hello": exe(b"#!/bin/sh\n"),
    b"empty": b"",
    b"\xff": b"byte",
    b"\xc3\xa9": link(b"/\xfe"),
}
TREE: Mapping[bytes, Tree] = {
    b"bin": BIN,
    b"lib": {},
    b"lib-old": {b"a": b"12345678"},
    b"lib.d": link("lib/../x"),
    b"lib64": exe(b""),
    b"\xf0\x9f\x98\x80": b"smile",
    b"entry": b")",
}
ROOTS: dict[str, Tree] = {
    "directory": TREE,
    "file": b"contents",
    "executable": exe(b"x" * 9),
    "link": link("x"),
    "empty": {},
}


def as_tree(found: NarListing, node: Node, archive: bytes) -> Tree:
    """Return the tree that a listing describes, with contents read from the NAR at the offsets of the listing."""
    match node.kind:
        case Kind.DIRECTORY:
            return {
                child.name.encode("utf-8", "surrogateescape"): as_tree(found, child, archive)
                for child in found.children(node)
            }
        case Kind.SYMLINK:
            return link(as_text(node.target).encode("utf-8", "surrogateescape"))
        case Kind.REGULAR:
            assert archive[: node.nar_offset].endswith(contents_prefix(node))
            data = archive[node.nar_offset : node.nar_offset + node.size]
            return exe(data) if node.executable else data


def compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


@pytest.mark.parametrize("offsets", [True, False])
@pytest.mark.parametrize("tree", ROOTS.values(), ids=ROOTS)
def test_a_listing_has_the_offsets_of_the_contents(tree: Tree, offsets: bool) -> None:
    archive = nar(tree)
    read = NarListing.parse(listing_json(tree, offsets=offsets), nar_size=len(archive))
    scanned = NarListing.from_events(parse_nar([archive]))
    assert read == scanned
    assert read != NarListing.from_events(events({"another": tree}))
    for found in (read, scanned):
        assert found.nar_size == len(archive)
        assert as_tree(found, found.root, archive) == tree
        assert b"".join(found.json_chunks()) == compact(listing(tree))


NAMES = st.binary(min_size=1, max_size=12).filter(lambda name: name not in (b".", b"..") and not {0, 47} & {*name})
LEAVES = st.binary(max_size=40) | st.builds(Exe, st.binary(max_size=9)) | st.builds(Link, NAMES)
TREES: st.SearchStrategy[Tree] = st.recursive(
    LEAVES, lambda inner: st.dictionaries(NAMES, inner, max_size=6), max_leaves=25
)


@given(TREES)
def test_any_tree_is_written_and_read_back(tree: Tree) -> None:
    archive = nar(tree)
    found = NarListing.from_events(parse_nar([archive], contents=False))
    written = b"".join(found.json_chunks())
    assert json.loads(written) == listing(tree)
    again = NarListing.parse(written, nar_size=len(archive))
    assert as_tree(again, again.root, archive) == tree
    assert len(again) == len(found) == count(tree)


def count(tree: Tree) -> int:
    return 1 + sum(count(child) for _, child in entries(tree)) if isinstance(tree, Mapping) else 1


@given(TREES, st.text(max_size=3))
def test_children_are_found_by_name(tree: Tree, other: str) -> None:
    found = NarListing.from_events(events(tree))
    children = list(found.children(found.root))
    names = [as_text(name) for name, _ in entries(tree)] if isinstance(tree, Mapping) else []
    assert [child.name for child in children] == names
    assert [found.child(found.root, name) for name in names] == children
    if other not in names:
        assert found.child(found.root, other) is None


def test_nodes_have_the_fields_of_their_kind() -> None:
    found = NarListing.from_events(events(TREE))
    assert found.root == Node(0, Kind.DIRECTORY, "", 0, False, 0, "")
    bin_ = found.child(found.root, "bin")
    assert bin_ is not None
    hello, odd = found.child(bin_, "hello"), found.child(bin_, "\u00e9")
    assert hello is not None
    assert odd is not None
    assert (hello.kind, hello.name, hello.size, hello.executable, hello.target) == (Kind.REGULAR, "hello", 10, True, "")
    assert (odd.kind, odd.size, odd.executable, odd.nar_offset, odd.target) == (Kind.SYMLINK, 0, False, 0, "/\udcfe")
    assert found.child(bin_, "\udcff") is not None
    for name in ("", "hell", "hello ", "z", "lib", "\ud800", "bin/hello", ".."):
        assert found.child(bin_, name) is None
    assert found.child(hello, "x") is None
    assert list(found.children(odd)) == []


def test_nodes_are_found_by_index() -> None:
    found = NarListing.from_events(events(TREE))
    nodes = [found.node(index) for index in range(len(found))]
    assert [node.index for node in nodes] == list(range(len(found)))
    assert nodes[0] == found.root
    assert all(child in nodes for child in found.children(found.root))
    for index in (-1, len(found)):
        for ask in (found.node, found.contents):
            with pytest.raises(IndexError, match="no node"):
                ask(index)
    for node in nodes:
        is_file = node.kind is Kind.REGULAR
        assert found.contents(node.index) == ((node.nar_offset, node.size) if is_file else None)
        children = list(found.children(node))
        for start in range(len(children) + 2):
            assert list(found.children(node, start)) == children[start:]


def test_a_non_recursive_listing_has_one_level() -> None:
    found = NarListing.from_events(events(TREE))
    whole = listing(TREE)["root"]["entries"]
    directory = {"type": "directory"}
    flat = {name: directory if child["type"] == "directory" else child for name, child in whole.items()}
    assert b"".join(found.json_chunks(recursive=False)) == compact(
        {"version": 1, "root": {**directory, "entries": flat}}
    )
    for name, child in whole.items():
        node = found.child(found.root, name)
        assert b"".join(found.json_chunks(node)) == compact({"version": 1, "root": child})
        if child["type"] != "directory":
            assert b"".join(found.json_chunks(node, recursive=False)) == compact({"version": 1, "root": child})


def test_json_is_produced_in_chunks() -> None:
    found = NarListing.from_events(events({f"{number:05}": b"" for number in range(20_000)}))
    chunks = list(found.json_chunks())
    assert len(chunks) > 10
    assert max(map(len, chunks)) < 70_000


REGULAR: dict[str, object] = {"type": "regular", "size": 3}


def within(node: object, name: str = "x") -> dict[str, object]:
    return {"type": "directory", "entries": {name: node}}


def nested(depth: int) -> dict[str, object]:
    """Return a file with ``depth`` directories above it."""
    node = REGULAR
    for _ in range(depth):
        node = within(node)
    return node


BAD_ROOTS: dict[str, object] = {
    "not an object": [],
    "null": None,
    "no type": {"size": 3},
    "unknown type": {"type": "fifo"},
    "type of the wrong type": {"type": ["regular"]},
    "no size": {"type": "regular"},
    **{f"size {size!r}": {**REGULAR, "size": size} for size in (-1, True, 1.5, 1e3, "3", None, 2**63, 2**64, 10**30)},
    **{f"executable {value!r}": {**REGULAR, "executable": value} for value in (1, "true", None)},
    **{f"narOffset {value!r}": {**REGULAR, "narOffset": value} for value in (0, -96, True, 96.0, "96", 97, 2**64)},
    "no entries": {"type": "directory"},
    "entries null": {"type": "directory", "entries": None},
    "entries of the wrong type": {"type": "directory", "entries": [REGULAR]},
    "entry of the wrong type": within("x"),
    "directory below without entries": within({"type": "directory"}),
    **{
        f"name {name!r}": within(REGULAR, name)
        for name in ("", ".", "..", "a/b", "/", "a\0", "a" * 256, "\u00e9" * 128)
    },
    "name that is not text": within(REGULAR, "\ud800"),
    "name twice, in two encodings": {"type": "directory", "entries": {"\u00e9": REGULAR, "\udcc3\udca9": REGULAR}},
    "no target": {"type": "symlink"},
    **{f"target {target!r}": {"type": "symlink", "target": target} for target in ("", 1, "a\0", "a" * 4096, "\ud800")},
    "too deep": nested(65),
    "sizes with a sum of more than 64 bits": {
        "type": "directory",
        "entries": {name: {"type": "regular", "size": 2**63 - 1} for name in "abc"},
    },
}


@pytest.mark.parametrize("root", BAD_ROOTS.values(), ids=BAD_ROOTS)
def test_an_invalid_root_is_refused(root: object) -> None:
    for size in (112, 2**63 - 1):
        with pytest.raises(ListingError) as caught:
            NarListing.parse(json.dumps({"version": 1, "root": root}).encode(), nar_size=size)
        assert "NAR of" not in str(caught.value)  # refused because of the root, not of the size


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>",
        b"[]",
        b"null",
        b"{}",
        b'{"version":1}',
        b'{"version":2,"root":{"type":"directory","entries":{}}}',
        b'{"version":true,"root":{"type":"directory","entries":{}}}',
        b'{"version":"1","root":{"type":"directory","entries":{}}}',
        b'{"root":{"type":"directory","entries":{}}}',
        b'\xef\xbb\xbf{"version":1,"root":{"type":"directory","entries":{}}}',
        b'{"version":1,"root":{"type":"directory","entries":{}}',
        b'{"version":1,"root":{"type":"regular","size":NaN}}',
        b'{"version":1,"root":{"type":"regular","size":' + b"9" * 10_000 + b"}}",
        b'{"version":1,"root":' + b'{"type":"directory","entries":{"a":' * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
    ],
    ids=lambda data: data[:60].decode("latin-1") + f" {len(data)}",
)
def test_invalid_json_is_refused(data: bytes) -> None:
    with pytest.raises(ListingError):
        NarListing.parse(data, nar_size=96)  # the size of an empty directory's NAR


def test_the_deepest_possible_nar_is_read() -> None:
    events_ = [Directory(b"x" if depth else b"") for depth in range(64)]
    size = NarListing.from_events([*events_, Regular(b"x", False, 3), *[DirectoryEnd()] * 64]).nar_size
    assert len(NarListing.parse(compact({"version": 1, "root": nested(64)}), nar_size=size)) == 65


@pytest.mark.parametrize("wrong", [-8, 8, 1])
def test_a_listing_with_another_nar_size_is_refused(wrong: int) -> None:
    with pytest.raises(ListingError, match="NAR of"):
        NarListing.parse(listing_json(TREE, offsets=False), nar_size=len(nar(TREE)) + wrong)


def test_a_wrong_offset_is_refused() -> None:
    document = listing(TREE)
    document["root"]["entries"]["lib-old"]["entries"]["a"]["narOffset"] += 8
    with pytest.raises(ListingError, match="entry b'a'"):
        NarListing.parse(compact(document), nar_size=len(nar(TREE)))


def test_unknown_fields_and_any_order_are_accepted() -> None:
    document = {
        "root": {"x": [], "entries": {"b": {**REGULAR, "mode": 7}, "a": REGULAR}, "type": "directory"},
        "version": 1,
    }
    size = len(nar({"a": b"123", "b": b"123"}))
    found = NarListing.parse(compact(document), nar_size=size)
    assert [child.name for child in found.children(found.root)] == ["a", "b"]


def test_raw_bytes_and_escapes_are_equivalent() -> None:
    """Nix 2.8 writes raw bytes, nar-serve writes escapes. A surrogate pair is one character, a lone one is a byte or invalid."""
    tree: Tree = {"\udcff\udcc3": b"", "\u00e9": b"", "\U0001f600": b""}
    size = len(nar(tree))
    raw = listing_json(tree)
    ours = b"".join(NarListing.parse(raw, nar_size=size).json_chunks())
    assert b"\xff" in raw
    assert b'"\\udcff\\udcc3"' in ours
    assert b'"\\ud83d\\ude00"' in ours
    assert b"".join(NarListing.parse(ours, nar_size=size).json_chunks()) == ours


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=5)
    | st.sampled_from(["regular", "directory", "symlink"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "size", "entries", "target", "executable", "narOffset"]) | st.text(max_size=3),
            inner,
        )
    ),
    max_leaves=20,
)
SAMPLE = listing_json(TREE)


@given(st.fixed_dictionaries({"version": st.just(1), "root": JSON}).map(compact), st.integers(0, 2**64))
def test_any_json_is_read_or_refused(data: bytes, size: int) -> None:
    read_or_refuse(data, size)


@given(st.integers(0, len(SAMPLE)), st.integers(0, 12), st.binary(max_size=6))
def test_a_damaged_listing_is_read_or_refused(at: int, cut: int, put: bytes) -> None:
    read_or_refuse(SAMPLE[:at] + put + SAMPLE[at + cut :], len(nar(TREE)))


def read_or_refuse(data: bytes, size: int) -> None:
    try:
        found = NarListing.parse(data, nar_size=size)
    except ListingError:
        return
    assert found.nar_size == size
    assert NarListing.parse(b"".join(found.json_chunks()), nar_size=size).nar_size == size


def test_the_builder_accepts_single_events() -> None:
    builder = ListingBuilder()
    archive = nar(TREE)
    for event in parse_nar([archive]):
        builder.add(event)
    assert b"".join(builder.finish().json_chunks()) == compact(listing(TREE))


FILE = Regular(b"", False, 3)
BAD_EVENTS: dict[str, list[Any]] = {
    "nothing": [],
    "two roots": [FILE, FILE],
    "open directory": [Directory(b"")],
    "end of no directory": [DirectoryEnd()],
    "wrong offset": [Regular(b"", False, 3, 97)],
    "wrong size of the NAR": [FILE, End(128)],
    "negative size": [Regular(b"", False, -1)],
    "endless target": [Directory(b""), Symlink(b"a", b"x"), Regular(b"b", False, 2**64)],
}


@pytest.mark.parametrize("bad", BAD_EVENTS.values(), ids=BAD_EVENTS)
def test_the_builder_refuses_invalid_events(bad: list[Any]) -> None:
    with pytest.raises(ListingError):
        NarListing.from_events(bad)


def test_the_builder_limits_the_number_of_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing_module, "NODES_MAX", 8)
    assert len(NarListing.from_events(events({str(number): b"" for number in range(7)}))) == 8
    with pytest.raises(ListingError):
        NarListing.from_events(events({str(number): b"" for number in range(8)}))


def large_tree(size: int) -> dict[str, Any]:
    """Return the root node of a listing with ``size`` files, in directories of a realistic shape."""
    dice = random.Random(1)
    root: dict[str, Any] = {"type": "directory", "entries": {}}
    for number in range(size):
        node = root["entries"]
        for _ in range(dice.randrange(5)):
            node = node.setdefault(f"dir-{dice.randrange(12)}", {"type": "directory", "entries": {}})["entries"]
        node[f"some-file-{number}.py"] = {
            "type": "regular",
            "size": dice.randrange(100_000),
            "executable": number % 9 == 0,
        }
    return root


def large_listing(files: int) -> tuple[bytes, int]:
    """Return the JSON of a listing and the size of its NAR."""
    data = compact({"version": 1, "root": large_tree(files)})
    with pytest.raises(ListingError) as caught:
        NarListing.parse(data, nar_size=1)
    found = re.search("describes a NAR of ([0-9]+) bytes", str(caught.value))
    assert found is not None
    return data, int(found[1])


@pytest.mark.slow
def test_a_hundred_thousand_entries_are_read_in_two_seconds() -> None:
    data, size = large_listing(100_000)
    begin = time.process_time()
    found = NarListing.parse(data, nar_size=size)
    seconds = time.process_time() - begin
    assert len(found) > 100_000
    assert found.nbytes < 12e6
    assert seconds < 2  # half a second on an idle machine


@pytest.mark.parametrize(
    "data",
    [
        b'{"version":1,"root":[' + b"{}," * 5_000_000 + b"1]}",
        b'{"version":1,"root":[' + b"[]," * 5_000_000 + b"1]}",
        b'{"version":1,"root":[' + b"1.5," * 4_000_000 + b"1]}",
        b'{"version":1,"root":[' + b'"ab",' * 3_000_000 + b"1]}",
        b'{"version":1,"root":["' + "\U0001f600".encode() + b"a" * 16_000_000 + b'"]}',
        b'{"version":1,"root":' + b'{"a":' * 3_000_000,
    ],
    ids=["objects", "arrays", "numbers", "texts", "wide", "nested"],
)
def test_a_listing_is_refused_before_it_takes_much_memory(data: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ListingError):
            NarListing.parse(data, nar_size=1000)
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_only_the_columns_stay_in_memory() -> None:
    data, size = large_listing(3000)
    gc.collect()
    tracemalloc.start()
    try:
        found = NarListing.parse(data, nar_size=size)
        gc.collect()
        retained = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert found.nbytes <= retained < found.nbytes * 1.1 + 4096


def real_listings(nix: RealNix) -> Iterator[tuple[bytes, NarInfo, bytes]]:
    for file in nix.cache.glob("*.ls"):
        info = NarInfo.parse(file.with_suffix(".narinfo").read_bytes())
        yield file.read_bytes(), info, lzma.decompress((nix.cache / info.url).read_bytes())


def test_listings_of_a_real_nix_match_their_nars(real_nix: RealNix) -> None:
    seen = set()
    for data, info, archive in real_listings(real_nix):
        read = NarListing.parse(data, nar_size=info.nar_size)
        scanned = NarListing.from_events(parse_nar([archive]))
        assert as_tree(read, read.root, archive) == as_tree(scanned, scanned.root, archive)
        written = b"".join(scanned.json_chunks())
        assert written == b"".join(read.json_chunks())
        if data.isascii():
            assert json.dumps(json.loads(written)) == json.dumps(
                json.loads(data)
            )  # the order of the fields is equal, too
        seen.add(info.store_path.name)
    assert seen == {"a", "b", "c", "tree"}


def sum_of_sizes(found: NarListing, node: Node) -> int:
    return node.size + sum(sum_of_sizes(found, child) for child in found.children(node))


@given(
    st.recursive(
        st.binary(max_size=9), lambda below: st.dictionaries(st.sampled_from([b"a", b"a.b", b"ab"]), below, max_size=3)
    )
)
def test_the_total_size_includes_all_files_below(tree: Tree) -> None:
    found = NarListing.from_events(events(tree))
    pending = [found.root]
    for node in pending:
        assert found.total_size(node) == sum_of_sizes(found, node)
        assert found.count(node) == len(list(found.children(node)))
        pending += found.children(node)


def test_fingerprints_differ_exactly_where_the_trees_differ() -> None:
    tree: dict[str, Tree] = {"a": {"f": b"1", "g": link("f")}, "b": b"22", "c": link("b"), "d": {}}
    listings: dict[str, Tree] = {
        "same": tree,
        "size": tree | {"b": b"2"},
        "mode": tree | {"b": exe(b"")},
        "target": tree | {"c": link("d")},
        "name": {**tree, "a": {"f": b"1", "h": link("f")}},
        "kind": tree | {"d": link("b")},
    }
    roots: dict[str, str] = {}
    for name, each in listings.items():
        from_nar = NarListing.from_events(parse_nar([nar(each)], contents=False))
        from_json = NarListing.parse(listing_json(each, offsets=False), nar_size=from_nar.nar_size)
        roots[name] = from_nar.fingerprint(from_nar.root)
        for index in range(len(from_nar)):
            assert from_nar.fingerprint(from_nar.node(index)) == from_json.fingerprint(from_json.node(index))
    assert len(set(roots.values())) == len(roots)
