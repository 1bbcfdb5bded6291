"""NARs assembled string by string from the grammar, without narcore: also NARs that no writer produces."""

import struct
from collections.abc import Iterable, Iterator

from hypothesis import strategies as st

from narcore.formats.nar import Data, NarEvent
from tests.builders import Tree, exe, link

SAMPLE: dict[bytes, Tree] = {
    b")": b"",
    b"bin": {b"hello": exe(b"#!/bin/sh\necho hello\n"), b"sh": link(b"/bin/sh")},
    b"empty": {},
    b"entry": b"eightfit",
    b"type": {b"...": {b"deeper": b"\0" * 100}},
    b"up": link(b"../../x"),
    b"\xff\xfe": b"not UTF-8",
}
"""A small tree with every kind of node. Its names are tags, dots, or not UTF-8."""


def string(raw: bytes, *, length: int | None = None, padding: bytes | None = None) -> bytes:
    """Return a string in NAR encoding; ``length`` and ``padding`` may be wrong on purpose."""
    zeros = bytes(-len(raw) % 8)
    return struct.pack("<Q", len(raw) if length is None else length) + raw + (zeros if padding is None else padding)


def strings(*raw: bytes) -> bytes:
    return b"".join(map(string, raw))


def root(node: bytes) -> bytes:
    return string(b"nix-archive-1") + node


def regular(contents: bytes = b"") -> bytes:
    return strings(b"(", b"type", b"regular", b"contents", contents, b")")


def symlink(target: bytes) -> bytes:
    return strings(b"(", b"type", b"symlink", b"target", target, b")")


def directory(*entries: bytes) -> bytes:
    return strings(b"(", b"type", b"directory") + b"".join(entries) + string(b")")


def entry(name: bytes, node: bytes | None = None) -> bytes:
    node = regular() if node is None else node
    return strings(b"entry", b"(", b"name", name, b"node") + node + string(b")")


def nested(depth: int) -> bytes:
    """A NAR whose deepest node, an empty directory, is at ``depth``."""
    before = strings(b"(", b"type", b"directory", b"entry", b"(", b"name", b"d", b"node")
    return root(before * depth + directory() + strings(b")", b")") * depth)


def cut(archive: bytes, size: int) -> Iterator[bytes]:
    """``archive`` in chunks of ``size`` bytes."""
    return (archive[start : start + size] for start in range(0, len(archive), size))


def merged(events: Iterable[NarEvent]) -> list[tuple[str, NarEvent]]:
    """Return events with their types (named tuples of different types can be equal), with adjacent Data joined."""
    found: list[tuple[str, NarEvent]] = []
    for event in events:
        if isinstance(event, Data):
            before = found.pop()[1] if isinstance(found[-1][1], Data) else Data(b"")
            assert isinstance(before, Data)
            event = Data(bytes(before.data) + bytes(event.data))
        found.append((type(event).__name__, event))
    return found


# Only a few different bytes, so that adjacent names and common prefixes are frequent.
NAMES = st.text(alphabet=[chr(byte) for byte in b".-a\x01 )\x7f\x80\xff"], min_size=1, max_size=9).map(
    lambda text: text.encode("latin-1")
)
CONTENTS = st.binary(max_size=40)
TARGETS = st.binary(min_size=1, max_size=20).filter(lambda target: b"\0" not in target)
LEAVES = st.one_of(CONTENTS, CONTENTS.map(exe), TARGETS.map(link))
TREES: st.SearchStrategy[Tree] = st.recursive(
    LEAVES,
    lambda trees: st.dictionaries(NAMES.filter(lambda name: name not in (b".", b"..")), trees, max_size=5),
    max_leaves=20,
)
