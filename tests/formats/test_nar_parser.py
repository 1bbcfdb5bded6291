"""The NAR parser: the same events for any chunking, correct offsets, and bounded memory and time."""

import time
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narcore.errors import NarError
from narcore.formats.nar import (
    NEED_DATA,
    Data,
    Directory,
    DirectoryEnd,
    End,
    NarEvent,
    NarParser,
    Regular,
    Symlink,
    parse_nar,
    write_nar,
)
from narcore.formats.nar.wire import DEPTH_MAX, NAME_MAX, TARGET_MAX
from tests import builders
from tests.builders import Tree, nar
from tests.formats.nar_samples import (
    SAMPLE,
    TREES,
    cut,
    directory,
    entry,
    merged,
    nested,
    regular,
    root,
    string,
    strings,
    symlink,
)


def events_of(tree: Tree, archive: bytes) -> list[tuple[str, NarEvent]]:
    """Return the expected events of ``archive``, with all offsets 0."""
    return merged([*builders.events(tree), End(len(archive))])


def without_offset(event: NarEvent) -> NarEvent:
    return event._replace(nar_offset=0) if isinstance(event, Regular) else event


def check_tree(tree: Tree, archive: bytes, chunks: Iterator[bytes]) -> None:
    found = merged(parse_nar(chunks))
    assert [(kind, without_offset(event)) for kind, event in found] == events_of(tree, archive)
    for (_, event), (_, following) in pairwise(found):
        if isinstance(event, Regular) and event.size:
            assert isinstance(following, Data)
            assert archive[event.nar_offset : event.nar_offset + event.size] == following.data


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 13, 31, 64, 500, 1 << 20])
def test_any_chunking_gives_the_same_events(size: int) -> None:
    archive = nar(SAMPLE)
    check_tree(SAMPLE, archive, cut(archive, size))
    headers = [pair for pair in merged(parse_nar([archive])) if pair[0] != "Data"]
    assert merged(parse_nar(cut(archive, size), contents=False)) == headers


@given(tree=TREES, cuts=st.lists(st.integers(0, 2000), max_size=6))
def test_parse_is_the_inverse_of_write(tree: Tree, cuts: list[int]) -> None:
    archive = nar(tree)
    bounds = [0, *sorted(cuts), len(archive)]
    check_tree(tree, archive, (archive[start:end] for start, end in pairwise(bounds)))
    assert b"".join(write_nar(parse_nar([archive]))) == archive


def test_an_archive_written_by_hand_gives_the_expected_events() -> None:
    executable = strings(b"(", b"type", b"regular", b"executable", b"", b"contents", b"code", b")")
    archive = root(directory(entry(b"a", executable), entry(b"b", symlink(b"a")), entry(b"c", directory())))
    assert merged(parse_nar([archive])) == merged(
        [
            Directory(b""),
            Regular(b"a", True, 4, archive.index(b"code")),
            Data(b"code"),
            Symlink(b"b", b"a"),
            Directory(b"c"),
            DirectoryEnd(),
            DirectoryEnd(),
            End(len(archive)),
        ]
    )


@pytest.mark.parametrize(
    "archive",
    [
        pytest.param(root(regular()), id="root is an empty file"),
        pytest.param(root(regular(b"12345678")), id="root is a file without padding"),
        pytest.param(root(symlink(b"/nix/store")), id="root is a symlink"),
        pytest.param(root(directory()), id="root is an empty directory"),
        pytest.param(root(symlink(b"x" * TARGET_MAX)), id="longest target"),
        pytest.param(root(directory(entry(b"n" * NAME_MAX))), id="longest name"),
        pytest.param(nested(DEPTH_MAX), id="deepest node"),
        pytest.param(root(directory(entry(b"-"), entry(b"..."), entry(b".a"), entry(b"\x80"))), id="odd names"),
        pytest.param(root(directory(entry(b"a"), entry(b"a\x01"), entry(b"aa"))), id="names with the same start"),
        pytest.param(root(directory(entry(b"A", symlink(b"/x")), entry(b"a", directory()))), id="case differs"),
    ],
)
@pytest.mark.parametrize("size", [1, 1 << 20])
def test_unusual_but_valid_archives_are_accepted(archive: bytes, size: int) -> None:
    assert b"".join(write_nar(parse_nar(cut(archive, size)))) == archive
    assert list(parse_nar(cut(archive, size), contents=False))[-1] == End(len(archive))


def test_events_are_returned_as_soon_as_their_bytes_arrive() -> None:
    archive = root(directory(entry(b"a", regular(b"123"))))
    size_end = archive.index(b"123")
    parser = NarParser()
    seen: list[tuple[int, NarEvent]] = []
    for end in range(1, len(archive) + 1):
        parser.receive_data(archive[end - 1 : end])
        seen += [(end, event) for event in parser.events()]
    assert [(end, type(event)) for end, event in seen] == [
        (archive.index(b"directory") + 16, Directory),
        (size_end, Regular),
        *[(size_end + count, Data) for count in (1, 2, 3)],
        (len(archive), DirectoryEnd),
        (len(archive), End),
    ]
    assert parser.offset == len(archive)


def test_a_complete_parser_returns_no_more_events() -> None:
    parser = NarParser()
    assert parser.next_event() is NEED_DATA
    parser.receive_data(b"")
    assert parser.next_event() is NEED_DATA
    parser.receive_data(nar(b"x"))
    assert [type(event) for event in parser.events()] == [Regular, Data, End]
    parser.receive_eof()
    assert parser.next_event() is NEED_DATA
    with pytest.raises(RuntimeError):
        parser.receive_data(b"x")


def test_an_early_end_is_refused_after_the_events_before_it() -> None:
    drained = NarParser()
    drained.receive_data(nar(b"x")[:-1])
    assert [type(event) for event in drained.events()] == [Regular, Data]
    with pytest.raises(NarError, match="ends too early"):
        drained.receive_eof()

    full = NarParser()
    full.receive_data(nar(b"x")[:-1])
    full.receive_eof()
    assert isinstance(full.next_event(), Regular)
    assert isinstance(full.next_event(), Data)
    for _ in range(2):  # the error is raised again
        with pytest.raises(NarError, match="ends too early"):
            full.next_event()

    with pytest.raises(NarError, match="ends too early"):
        NarParser().receive_eof()


def test_an_error_is_final() -> None:
    parser = NarParser()
    parser.receive_data(b"x" * 64)
    with pytest.raises(NarError) as first:
        parser.next_event()
    parser.receive_data(nar(b"x"))
    with pytest.raises(NarError) as second:
        parser.next_event()
    assert first.value.where == second.value.where == "offset 0"


def test_data_refers_to_the_chunk_and_outlives_the_parser() -> None:
    archive = nar({"a": b"first", "b": b"x" * 1000})
    chunk, rest = archive[:-600], archive[-600:]
    views = [event.data for event in parse_nar([chunk, rest]) if isinstance(event, Data)]
    assert [view.obj for view in views if isinstance(view, memoryview)] == [chunk, chunk, rest]
    assert b"".join(views) == b"first" + b"x" * 1000


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_a_mutable_buffer_is_copied(kind: type[bytearray] | type[memoryview]) -> None:
    buffer = bytearray(nar(b"contents"))
    parser = NarParser()
    parser.receive_data(kind(buffer))
    buffer[:] = bytes(len(buffer))
    assert Data(b"contents") in list(parser.events())


def test_chunks_are_closed_with_the_events() -> None:
    closed = False

    def chunks() -> Iterator[bytes]:
        nonlocal closed
        try:
            yield nar(SAMPLE)
        finally:
            closed = True

    source = chunks()  # keep a reference: otherwise garbage collection would close it in any case
    events = parse_nar(source)
    next(events)
    assert not closed
    events.close()  # type: ignore[attr-defined]  # declared as an Iterator, but a generator
    assert closed


@pytest.mark.parametrize("contents", [True, False])
def test_memory_is_bounded_by_a_token_and_a_chunk(contents: bool) -> None:
    chunk_size, count = 64 * 1024, 400

    def chunks() -> Iterator[bytes]:
        yield string(b"nix-archive-1") + strings(b"(", b"type", b"directory")
        for number in range(count):
            yield strings(b"entry", b"(", b"name", b"%05d" % number, b"node", b"(", b"type", b"regular", b"contents")
            yield chunk_size.to_bytes(8, "little")
            yield bytes(chunk_size)
            yield strings(b")", b")")
        yield string(b")")

    tracemalloc.start()
    try:
        size = sum(len(event.data) for event in parse_nar(chunks(), contents) if isinstance(event, Data))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size == (chunk_size * count if contents else 0)
    assert peak < 4 * chunk_size


@pytest.mark.parametrize("drain", [True, False], ids=["event by event", "all at the end"])
def test_time_is_linear_for_any_chunking(drain: bool) -> None:
    tree = {f"{number:04}": builders.link("x" * TARGET_MAX) for number in range(30)}
    archive = nar({"big": b"x" * 100_000, "links": tree})
    parser = NarParser()
    started = time.process_time()
    count = 0
    for byte in cut(archive, 1):
        parser.receive_data(byte)
        count += sum(1 for _ in parser.events()) if drain else 0
    count += sum(1 for _ in parser.events())
    assert count == 3 + 100_000 + 30 + 3
    # Takes about a second. A parser with quadratic time, or one that copies a token for each of its bytes, takes minutes.
    assert time.process_time() - started < 20
