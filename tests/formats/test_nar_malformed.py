"""Malformed NARs: every violation raises a NarError with its offset, in any chunking, with contents or without."""

import random
import re
import struct
from typing import NamedTuple

import pytest

from narcore.errors import NarError
from narcore.formats.nar import Data, Directory, End, NarEvent, Regular, parse_nar, write_nar
from tests.builders import nar
from tests.formats.nar_samples import (
    SAMPLE,
    cut,
    directory,
    entry,
    nested,
    regular,
    root,
    string,
    strings,
    symlink,
)

MAGIC = string(b"nix-archive-1")
IN_NODE = MAGIC + strings(b"(", b"type")
IN_DIRECTORY = IN_NODE + string(b"directory")
IN_ENTRY = IN_DIRECTORY + strings(b"entry", b"(", b"name")
IN_FILE = IN_NODE + strings(b"regular", b"contents")
IN_LINK = IN_NODE + strings(b"symlink", b"target")
CLOSE = string(b")")
HUGE = 2**64 - 8  # its padded end, in 64 bits, is 0


class Case(NamedTuple):
    """``good`` is the longest prefix that could still become a NAR; ``bad`` begins with the violation."""

    good: bytes
    bad: bytes
    fault: str


def after(name: bytes) -> bytes:
    """Return a directory with an entry ``name``, up to the length of the next entry's name."""
    return IN_DIRECTORY + entry(name) + strings(b"entry", b"(", b"name")


def named(name: bytes) -> bytes:
    """Return an entry's name and a valid rest of the NAR."""
    return strings(name, b"node") + regular() + CLOSE + CLOSE


MALFORMED = {
    # The order of tags is fixed.
    "another magic": Case(b"", string(b"nix-archive-2") + regular(), "nix-archive-2"),
    "no magic": Case(b"", regular(), "head of a NAR"),
    "no node": Case(MAGIC, CLOSE, r"'\)'"),
    "no type": Case(MAGIC + string(b"("), string(b"regular"), "regular"),
    "unknown type": Case(IN_NODE, strings(b"fifo", b")"), "fifo"),
    "no contents": Case(IN_NODE + string(b"regular"), CLOSE, r"'\)'"),
    "contents before executable": Case(
        IN_FILE + string(b""), strings(b"executable", b"", b")"), "expected the end of a node, found b'executable'"
    ),
    "executable with a value": Case(
        IN_NODE + strings(b"regular", b"executable"), strings(b"yes", b"contents", b"", b")"), "yes"
    ),
    "executable twice": Case(
        IN_NODE + strings(b"regular", b"executable", b""), strings(b"executable", b"", b"contents", b"", b")"), "exec"
    ),
    "no target": Case(IN_NODE + string(b"symlink"), CLOSE, r"'\)'"),
    "contents of a symlink": Case(IN_NODE + string(b"symlink"), strings(b"contents", b"x", b")"), "contents"),
    "type twice": Case(IN_DIRECTORY, strings(b"type", b"directory", b")"), "entry or the end"),
    "entry without brackets": Case(IN_DIRECTORY + string(b"entry"), strings(b"name", b"x"), "name"),
    "entry without a name": Case(IN_DIRECTORY + strings(b"entry", b"("), string(b"node") + regular(), "node"),
    "entry without a node": Case(IN_ENTRY + string(b"x"), CLOSE, "expected a node"),
    "file not closed": Case(IN_FILE + string(b"x"), strings(b"entry"), "end of a node"),
    "entry not closed": Case(
        IN_ENTRY + strings(b"x", b"node") + regular(), strings(b"entry", b"(", b"name"), "end of a node"
    ),
    "entry of a directory not closed": Case(
        IN_ENTRY + strings(b"x", b"node") + directory(), strings(b"entry", b"("), "end of an entry"
    ),
    "bytes after the NAR": Case(root(regular()), b"\0", "after the end of the NAR"),
    "a second NAR": Case(root(regular()), root(regular()), "after the end of the NAR"),
    # Limits, and impossible lengths.
    "tag of 33 bytes": Case(IN_NODE, string(b"r" * 33), "33 bytes"),
    "tag of 2^64-8 bytes": Case(IN_NODE, string(b"regular", length=HUGE), str(HUGE)),
    "name of 256 bytes": Case(IN_ENTRY, named(b"n" * 256), "256 bytes"),
    "name of 2^64-8 bytes": Case(IN_ENTRY, string(b"name", length=HUGE), str(HUGE)),
    "target of 4096 bytes": Case(IN_LINK, strings(b"t" * 4096, b")"), "4096 bytes"),
    "target of 2^64-8 bytes": Case(IN_LINK, string(b"target", length=HUGE), str(HUGE)),
    "file of 2^63 bytes": Case(IN_FILE, string(b"", length=2**63), "exceeds the largest possible file"),
    "file of 2^64-1 bytes": Case(IN_FILE, string(b"", length=2**64 - 1), "exceeds the largest possible file"),
    "executable of 2^63 bytes": Case(
        IN_NODE + strings(b"regular", b"executable", b"", b"contents"), string(b"", length=2**63), "exceeds the largest"
    ),
    # Names.
    "empty name": Case(IN_ENTRY, named(b""), "name is empty"),
    "name .": Case(IN_ENTRY, named(b"."), "is named"),
    "name ..": Case(IN_ENTRY, named(b".."), "is named"),
    "name with a slash": Case(IN_ENTRY, named(b"../x"), "slash"),
    "name with a NUL": Case(IN_ENTRY, named(b"x\0"), "NUL"),
    "names in the wrong order": Case(after(b"b"), named(b"a"), "comes after"),
    "names in signed order": Case(after(b"\x80"), named(b"a"), "comes after"),
    "names in the order of length": Case(after(b"b"), named(b"aa"), "comes after"),
    "name twice": Case(after(b"a"), named(b"a"), "two entries"),
    "name twice, after a directory": Case(
        IN_DIRECTORY + entry(b"b", directory(entry(b"z"))) + strings(b"entry", b"(", b"name"),
        named(b"b"),
        "two entries",
    ),
    # Targets.
    "empty target": Case(IN_LINK, strings(b"", b")"), "target is empty"),
    "target with a NUL": Case(IN_LINK, strings(b"x\0y", b")"), "NUL"),
    # Padding is zero.
    "padding of the magic": Case(b"", string(b"nix-archive-1", padding=b"\0\0\1") + regular(), "padding"),
    "padding of a tag": Case(IN_NODE, string(b"regular", padding=b"\1") + strings(b"contents", b"", b")"), "padding"),
    "padding of a bracket": Case(MAGIC, string(b"(", padding=b"\0" * 6 + b"(") + string(b"type"), "padding"),
    "padding of a name": Case(
        IN_ENTRY + struct.pack("<Q", 1) + b"x", b"\0" * 6 + b"\1" + string(b"node") + regular(), "padding"
    ),
    "padding of a target": Case(IN_LINK + struct.pack("<Q", 1) + b"x", b"\1" + b"\0" * 6 + CLOSE, "padding"),
    "padding of contents": Case(IN_FILE + struct.pack("<Q", 1) + b"x", b"\0\1" + b"\0" * 5 + CLOSE, "padding"),
    "padding of contents in a directory": Case(
        IN_ENTRY + strings(b"x", b"node", b"(", b"type", b"regular", b"contents") + struct.pack("<Q", 7) + b"1234567",
        b"\1" + CLOSE + CLOSE + CLOSE,
        "padding",
    ),
}  # fmt: skip


def refused(archive: bytes, size: int, contents: bool) -> NarError:
    with pytest.raises(NarError) as refusal:
        list(parse_nar(cut(archive, size), contents))
    return refusal.value


@pytest.mark.parametrize("contents", [True, False], ids=["contents", "no contents"])
@pytest.mark.parametrize("case", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_violation_is_refused_with_its_offset(case: Case, contents: bool) -> None:
    for size in (1 << 20, 1, 5):
        refusal = refused(case.good + case.bad, size, contents)
        assert refusal.where == f"offset {len(case.good)}"
        if size > len(case.good + case.bad):  # in smaller chunks it is refused before it has arrived completely
            assert re.search(case.fault, str(refusal))


@pytest.mark.parametrize("case", MALFORMED.values(), ids=MALFORMED.keys())
def test_the_bytes_before_a_violation_are_accepted(case: Case) -> None:
    if case.fault == "after the end of the NAR":
        assert list(parse_nar([case.good]))
    else:
        assert "ends too early" in str(refused(case.good, 1 << 20, True))


@pytest.mark.parametrize("contents", [True, False], ids=["contents", "no contents"])
def test_a_truncated_nar_is_refused_after_the_events_before_the_cut(contents: bool) -> None:
    archive = nar(SAMPLE)
    whole = list(parse_nar([archive], contents))
    for end in range(len(archive)):
        seen: list[NarEvent] = []
        with pytest.raises(NarError, match="ends too early") as refusal:
            seen.extend(parse_nar([archive[:end]], contents))  # extend keeps the events before the error
        assert refusal.value.where == f"offset {end}"
        assert [event for event in seen if not isinstance(event, Data)] == [
            event for event in whole if not isinstance(event, Data)
        ][: sum(1 for event in seen if not isinstance(event, Data))]


def test_a_damaged_nar_is_refused_or_is_another_valid_nar() -> None:
    """NARs are canonical: the writer turns the events of an accepted archive into the same bytes."""
    rng = random.Random(20260517)  # a fixed seed, so that every run is the same
    archive = nar(SAMPLE)
    places: list[str] = []
    accepted = 0
    for _ in range(1200):
        damaged = damage(rng, archive)
        try:
            events = list(parse_nar(cut(damaged, rng.choice((1, 9, 100, 1 << 20)))))
        except NarError as refusal:
            places.append(refusal.where)
            assert refused(damaged, 1 << 20, contents=False).where == places[-1]
            continue
        accepted += 1
        assert b"".join(write_nar(events)) == damaged
    assert accepted > 25  # damage to contents, names and targets
    assert all(re.fullmatch(r"offset \d+", place) for place in places)


def damage(rng: random.Random, archive: bytes) -> bytes:
    damaged = bytearray(archive)
    for _ in range(rng.randint(1, 2)):
        at = rng.randrange(len(damaged))
        match rng.randrange(5):
            case 0:
                damaged[at] ^= 1 << rng.randrange(8)
            case 1:
                damaged[at] = rng.randrange(256)
            case 2:
                del damaged[at : at + rng.choice((1, 8, 16, 100))]
            case 3:
                damaged[at:at] = damaged[at - at % 8 : at - at % 8 + rng.choice((8, 16, 48))]
            case 4:
                damaged[at - at % 8 : at - at % 8 + 8] = struct.pack("<Q", rng.choice((0, 1, 2**31, 2**63, HUGE)))
        damaged = damaged or bytearray(1)
    return bytes(damaged)


# The security advisories.


def test_cve_2026_44028_nesting_is_bounded() -> None:
    head = strings(b"(", b"type", b"directory")
    step = strings(b"entry", b"(", b"name", b"d", b"node") + head
    seen: list[NarEvent] = []
    with pytest.raises(NarError, match="nested deeper than 64"):
        seen.extend(parse_nar([MAGIC + head + step * 100_000]))
    assert [type(event) for event in seen] == [Directory] * 65  # the root and 64 below it
    assert "nested deeper" in str(refused(nested(65), 1, True))


@pytest.mark.parametrize("contents", [True, False], ids=["contents", "no contents"])
def test_lix_2026_05_a_length_of_2_to_64_less_8_does_not_wrap(contents: bool) -> None:
    """With 64-bit arithmetic, length and padding add up to 0, and parsing continues as if the file were empty."""
    archive = IN_FILE + string(b"", length=HUGE) + CLOSE
    seen: list[NarEvent] = []
    with pytest.raises(NarError, match=f"{HUGE} bytes") as refusal:
        seen.extend(parse_nar([archive], contents))
    assert refusal.value.where == f"offset {len(IN_FILE)}"
    assert seen == []


def test_cve_2024_45593_a_name_can_not_be_both_a_link_and_a_directory() -> None:
    """The second entry would be unpacked through the link of the first entry."""
    outside = entry(b"a", symlink(b"/etc")), entry(b"a", directory(entry(b"passwd", regular(b"x"))))
    assert "two entries are named b'a'" in str(refused(root(directory(*outside)), 1 << 20, True))
    between = outside[0], entry(b"b"), outside[1]
    assert "comes after" in str(refused(root(directory(*between)), 1 << 20, True))


def test_the_largest_possible_file_is_refused_only_when_the_input_ends() -> None:
    seen: list[NarEvent] = []
    with pytest.raises(NarError, match="ends too early"):
        seen.extend(parse_nar([IN_FILE + string(b"", length=2**63 - 1) + CLOSE], False))
    assert seen == [Regular(b"", False, 2**63 - 1, len(IN_FILE) + 8)]
    assert not any(isinstance(event, End) for event in seen)
