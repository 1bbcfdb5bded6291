"""The NAR writer: it refuses sequences that are not a NAR, does not copy contents, and agrees with Nix."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from narcore.errors import NarError
from narcore.formats.nar import (
    Data,
    Directory,
    DirectoryEnd,
    End,
    NarEvent,
    NarWriter,
    Regular,
    Symlink,
    parse_nar,
    write_nar,
)
from tests import needs
from tests.builders import Tree, exe, link, nar
from tests.formats.nar_samples import (
    SAMPLE,
    directory,
    entry,
    regular,
    root,
    string,
    strings,
    symlink,
)

DIR = Directory(b"")
REFUSED: dict[str, tuple[list[NarEvent], str]] = {
    "nothing": ([], "ends too early"),
    "only an end": ([End(0)], "ends too early"),
    "open directory": ([DIR], "ends too early"),
    "end in a directory": ([DIR, End(96)], "ends too early"),
    "two roots": ([Symlink(b"", b"x"), Symlink(b"", b"x")], "second root"),
    "two directories as root": ([DIR, DirectoryEnd(), DIR], "second root"),
    "root with a name": ([Regular(b"x", False, 0)], "root node has the name"),
    "end of no directory": ([DIR, DirectoryEnd(), DirectoryEnd()], "did not begin"),
    "event after the end": ([DIR, DirectoryEnd(), End(96), End(96)], "after the end"),
    "another size": ([DIR, DirectoryEnd(), End(97)], "96 bytes instead of 97"),
    "contents of nothing": ([Data(b"x")], "only 0 are left"),
    "contents of a symlink": ([Symlink(b"", b"x"), Data(b"x")], "only 0 are left"),
    "contents of a directory": ([DIR, Data(b"x")], "only 0 are left"),
    "too many contents": (
        [Regular(b"", False, 2), Data(b"x"), Data(b"xx")],
        "2 bytes of contents, but only 1 are left",
    ),
    "too few contents": ([DIR, Regular(b"x", False, 2), Data(b"x"), DirectoryEnd()], "1 bytes too early"),
    "no contents": ([DIR, Regular(b"x", False, 2), Regular(b"y", False, 0)], "2 bytes too early"),
    "negative size": ([Regular(b"", False, -1)], "-1 bytes"),
    "size of 2^63": ([Regular(b"", False, 2**63)], "bytes"),
    "empty name": ([DIR, Regular(b"", False, 0)], "name is empty"),
    "name ..": ([DIR, Directory(b"..")], "is named"),
    "name with a slash": ([DIR, Symlink(b"a/b", b"x")], "slash"),
    "name with a NUL": ([DIR, Symlink(b"a\0", b"x")], "NUL"),
    "name of 256 bytes": ([DIR, Directory(b"n" * 256)], "256 bytes"),
    "wrong order": ([DIR, Symlink(b"b", b"x"), Symlink(b"a", b"x")], "comes after"),
    "name twice": ([DIR, Directory(b"a"), DirectoryEnd(), Symlink(b"a", b"x")], "two entries"),
    "empty target": ([Symlink(b"", b"")], "target is empty"),
    "target with a NUL": ([Symlink(b"", b"x\0")], "NUL"),
    "target of 4096 bytes": ([Symlink(b"", b"x" * 4096)], "4096 bytes"),
    "nesting": ([DIR, *[Directory(b"d")] * 65], "nested deeper"),
}


@pytest.mark.parametrize(("events", "fault"), REFUSED.values(), ids=REFUSED.keys())
def test_an_invalid_sequence_is_refused(events: list[NarEvent], fault: str) -> None:
    with pytest.raises(NarError, match=fault) as refusal:
        list(write_nar(events))
    assert refusal.value.where.startswith("offset ")


@pytest.mark.parametrize(
    "refused",
    [Symlink(b"b", b""), Regular(b"b", False, 2**63), Directory(b"a"), DirectoryEnd(), End(0), Data(b"too long")],
)
def test_a_refused_event_has_no_effect(refused: NarEvent) -> None:
    def sent(odd: NarEvent | None) -> Iterator[bytes]:
        writer = NarWriter()
        for event in (Directory(b""), Regular(b"a", False, 3), Data(b"123")):
            yield writer.send(event)
            if odd is not None and not isinstance(event, Directory) and not isinstance(odd, DirectoryEnd):
                with pytest.raises(NarError):
                    writer.send(odd)
        yield writer.send(Symlink(b"b", b"x"))
        yield writer.send(DirectoryEnd())
        if odd is not None:
            with pytest.raises(NarError):
                writer.send(odd)
        yield writer.finish()

    assert b"".join(sent(refused)) == b"".join(sent(None))


def test_the_bytes_follow_the_grammar() -> None:
    executable = strings(b"(", b"type", b"regular", b"executable", b"", b"contents", b"code", b")")
    tree: dict[str, Tree] = {"a": exe(b"code"), "b": link("a"), "c": {}, "d": b"12345678", "e": b""}
    by_hand = root(
        directory(
            entry(b"a", executable),
            entry(b"b", symlink(b"a")),
            entry(b"c", directory()),
            entry(b"d", regular(b"12345678")),
            entry(b"e", regular(b"")),
        )
    )
    assert nar(tree) == by_hand
    assert nar(b"x") == root(regular(b"x"))
    assert nar(link("x")) == root(symlink(b"x"))


def test_end_may_be_omitted_and_finish_may_be_repeated() -> None:
    archive = nar(SAMPLE)
    writer = NarWriter()
    written = b"".join(writer.send(event) for event in parse_nar([archive]) if not isinstance(event, End))
    assert written + writer.finish() == archive
    assert writer.finish() == b""
    assert writer.offset == len(archive)


def test_contents_are_passed_on_without_a_copy() -> None:
    data = b"x" * 1001
    chunks = list(write_nar([Regular(b"", False, 2002), Data(data), Data(data)]))
    assert chunks[1] is data
    assert chunks[2] is data
    assert chunks[3] == bytes(6) + string(b")")
    assert all(chunks)


def test_events_are_closed_with_the_chunks() -> None:
    closed = False

    def events() -> Iterator[NarEvent]:
        nonlocal closed
        try:
            yield Symlink(b"", b"x")
        finally:
            closed = True

    source = events()  # keep a reference: otherwise garbage collection would close it in any case
    chunks = write_nar(source)
    next(chunks)
    assert not closed
    chunks.close()  # type: ignore[attr-defined]  # declared as an Iterator, but a generator
    assert closed


def test_nix_reads_and_writes_the_same_bytes(tmp_path: Path) -> None:
    """`nix-store --dump` and `--restore` need no store."""
    needs.program("nix-store")
    ours = nar(SAMPLE)
    tree = tmp_path / "restored"
    subprocess.run(["nix-store", "--restore", tree], input=ours, check=True, timeout=60)
    assert (tree / "bin" / "hello").stat().st_mode & 0o100
    assert (tree / "up").readlink() == Path("../../x")
    dumped = subprocess.run(["nix-store", "--dump", tree], capture_output=True, check=True, timeout=60).stdout
    assert dumped == ours
    assert b"".join(write_nar(parse_nar([dumped]))) == dumped
