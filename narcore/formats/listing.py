"""NAR listings: what is in a NAR and at which offset, without its contents (the ``.ls`` files of a binary cache).

A listing may hold a million entries, so there is no object an entry: a NarListing is a few columns, and a Node is made
when one is asked for. An ``.ls`` file is not signed. Hence its offsets are never believed but computed, which takes
nothing but the tree, and the size of the NAR that comes out has to be the narinfo's.

Names and targets are bytes in a NAR and ``str`` here: UTF-8 with surrogateescape, so that any bytes survive.
"""

import enum
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from json.encoder import encode_basestring_ascii

from narcore.errors import ListingError
from narcore.formats import listing_json
from narcore.formats.names import to_bytes, to_text
from narcore.formats.nar import wire
from narcore.formats.nar.events import Data, DirectoryEnd, End, NarEvent, Regular, Symlink

NODES_MAX = 2**22
"""Entries of one listing: ten times what the largest known packages have, and some 200 MB as columns."""

MEMORY_MAX = 160 << 20
"""Bytes of memory that reading an ``.ls`` file may take, reckoned on the safe side: it really takes 100 MiB at most."""

_JSON_CHUNK = 64 * 1024

# How many bytes of a NAR lie where, for an entry in a directory: its name and contents, padded, come on top.
_HEAD = len(wire.ENTRY) + 8 + len(wire.NODE)
_REGULAR = len(wire.REGULAR) + 8
_EXECUTABLE = len(wire.EXECUTABLE) + 8
_SYMLINK = len(wire.SYMLINK) + 8
_DIRECTORY = len(wire.DIRECTORY)
_CLOSE = len(wire.CLOSE_ENTRY)
# The root is counted as if it were an entry with an empty name; this is how far off that is before and behind it.
_BEFORE_ROOT = len(wire.ROOT) - _HEAD
_BEHIND_ROOT = len(wire.CLOSE) - _CLOSE

_CONTENTS = wire.token(b"contents")


class Kind(enum.StrEnum):
    """The type of a node, by its name in listings."""

    REGULAR = "regular"
    DIRECTORY = "directory"
    SYMLINK = "symlink"


_PLAIN_FILE, _EXECUTABLE_FILE, _DIRECTORY_NODE, _SYMLINK_NODE = range(4)
_KINDS = (Kind.REGULAR, Kind.REGULAR, Kind.DIRECTORY, Kind.SYMLINK)


@dataclass(frozen=True, slots=True)
class Node:
    """One node of a listing. What does not apply to its kind is 0, False or "".

    ``name`` is "" for the root. ``size`` and ``nar_offset`` are bytes: the contents of a regular file are those of the
    NAR from ``nar_offset`` to ``nar_offset + size``. ``index`` is its place in its own listing.
    """

    index: int
    kind: Kind
    name: str
    size: int
    executable: bool
    nar_offset: int
    target: str


class _Columns:
    """The nodes in the order of the NAR, a row each; 25 bytes a row, besides names and targets."""

    __slots__ = ("children", "kinds", "name_ends", "names", "sizes", "starts", "targets")

    def __init__(self) -> None:
        self.kinds = bytearray()
        self.names = bytearray()  # all of them, end to end
        self.name_ends = array("I")
        self.sizes = array("Q")  # of contents in bytes; of a directory in entries; of a target in bytes
        self.starts = array(
            "Q"
        )  # of contents in the NAR; of a directory's entries in ``children``; of a target in ``targets``
        self.children = array("I")  # rows; those of one directory stand together, in byte order of their names
        self.targets = bytearray()


class NarListing:
    """The tree in a NAR of ``nar_size`` bytes; ``len()`` is the number of its nodes, the root included."""

    __slots__ = ("_columns", "_sums", "nar_size")

    def __init__(self, columns: _Columns, nar_size: int) -> None:
        self._columns = columns
        self._sums: array[int] | None = (
            None  # of the contents up to each row, that one left out; made when it is asked for
        )
        self.nar_size = nar_size

    @classmethod
    def parse(cls, data: bytes, *, nar_size: int) -> "NarListing":
        """Read an ``.ls`` file, already decompressed, that is said to be of a NAR of ``nar_size`` bytes.

        ListingError: it breaks the format or a NAR's rules, is not complete, does not fit ``nar_size`` or its own offsets,
        or reading it would take more memory than that of some 200,000 entries does: the NAR itself can be read in little.
        """
        if listing_json.memory_needed(data) > MEMORY_MAX:
            raise ListingError("it takes too much memory to be read")
        listing = cls.from_events(listing_json.events(data))
        if listing.nar_size != nar_size:
            raise ListingError(f"the listing is of a NAR of {listing.nar_size} bytes, and this one has {nar_size}")
        return listing

    @classmethod
    def from_events(cls, events: Iterable[NarEvent]) -> "NarListing":
        """The listing of a NAR whose events these are; see `ListingBuilder`."""
        builder = ListingBuilder()
        builder.add_all(events)
        return builder.finish()

    def __eq__(self, other: object) -> bool:
        """Whether both are of the same tree, to the last name, size and target."""
        if not isinstance(other, NarListing):
            return NotImplemented
        return self.nar_size == other.nar_size and all(
            getattr(self._columns, column) == getattr(other._columns, column) for column in _Columns.__slots__
        )

    __hash__ = None  # type: ignore[assignment]  # nothing hashes a million entries

    def __len__(self) -> int:
        return len(self._columns.kinds)

    @property
    def nbytes(self) -> int:
        """About how many bytes of memory this listing takes."""
        columns = self._columns
        of_sums: int = self._sums.__sizeof__() if self._sums is not None else 0
        of_columns: int = sum(getattr(columns, name).__sizeof__() for name in columns.__slots__)
        return of_sums + of_columns

    @property
    def root(self) -> Node:
        """The node that the store path itself is."""
        return self._node(0)

    def node(self, index: int) -> Node:
        """The node with that ``index``. Raises IndexError if there are not so many."""
        if not 0 <= index < len(self):
            raise IndexError(f"no node {index} in a listing of {len(self)}")
        return self._node(index)

    def contents(self, index: int) -> tuple[int, int] | None:
        """Where the contents of the node with that ``index`` begin in the NAR, and their length; None if it is no regular file.

        As in `node`, but quicker than that. Raises IndexError.
        """
        columns = self._columns
        if not 0 <= index < len(columns.kinds):
            raise IndexError(f"no node {index} in a listing of {len(self)}")
        return (columns.starts[index], columns.sizes[index]) if columns.kinds[index] < _DIRECTORY_NODE else None

    def children(self, node: Node, start: int = 0) -> Iterator[Node]:
        """The entries of a directory in byte order of their names, from the ``start``-th on; nothing for other nodes."""
        return map(self._node, map(self._columns.children.__getitem__, self._places(node.index)[start:]))

    def child(self, node: Node, name: str) -> Node | None:
        """The entry of that name, or None; also if ``node`` is no directory, or no NAR can hold such a name."""
        try:
            wanted = to_bytes(name)
        except UnicodeEncodeError:
            return None
        rows, places = self._columns.children, self._places(node.index)
        place = bisect_left(rows, wanted, places.start, places.stop, key=self._raw_name)
        if place == places.stop or self._raw_name(rows[place]) != wanted:
            return None
        return self._node(rows[place])

    def count(self, node: Node) -> int:
        """How many entries a directory has; 0 for other nodes."""
        return len(self._places(node.index))

    def total_size(self, node: Node) -> int:
        """The bytes of all regular files at the node and below it.

        A subtree's rows stand together, so this is a difference of two sums. The first call for a listing makes those:
        8 bytes a row, and some 5 ms for 100,000.
        """
        sums = self._sums
        if sums is None:
            columns = self._columns
            files = (
                size if kind < _DIRECTORY_NODE else 0 for kind, size in zip(columns.kinds, columns.sizes, strict=True)
            )
            sums = self._sums = array("Q", accumulate(files, initial=0))
        return sums[self._last_row(node.index) + 1] - sums[node.index]

    def _last_row(self, row: int) -> int:
        """The last row of the subtree that begins at ``row``: its last entry's last entry, and so on down."""
        columns = self._columns
        while columns.kinds[row] == _DIRECTORY_NODE and columns.sizes[row]:
            row = columns.children[columns.starts[row] + columns.sizes[row] - 1]
        return row

    def json_chunks(self, node: Node | None = None, recursive: bool = True) -> Iterator[bytes]:
        """The ``.ls`` file of a node (the root if None) and what is below it, in chunks of some 64 KiB.

        Not recursive: one level, with child directories as ``{"type":"directory"}``. The order of fields is Nix's;
        bytes that are no UTF-8 become ``\\udc80`` to ``\\udcff``. Offsets are those in the whole NAR, so `parse` reads
        back only the recursive listing of the root.
        """
        parts: list[str] = []
        size = 0
        for part in self._json_parts(0 if node is None else node.index, recursive):
            parts.append(part)
            size += len(part)
            if size >= _JSON_CHUNK:
                yield "".join(parts).encode("ascii")
                parts, size = [], 0
        yield "".join(parts).encode("ascii")

    def _json_parts(self, root: int, recursive: bool) -> Iterator[str]:
        kinds = self._columns.kinds
        yield '{"version":1,"root":' + self._json_head(root)
        pending = [self._child_rows(root)] if kinds[root] == _DIRECTORY_NODE else []
        comma = ""
        while pending:
            row = next(pending[-1], None)
            if row is None:
                pending.pop()
                yield "}}"
                comma = ","
                continue
            prefix = f"{comma}{encode_basestring_ascii(self._name(row))}:"
            comma = ","
            if kinds[row] != _DIRECTORY_NODE:
                yield prefix + self._json_head(row)
            elif recursive:
                yield prefix + self._json_head(row)
                pending.append(self._child_rows(row))
                comma = ""
            else:
                yield prefix + '{"type":"directory"}'
        yield "}"

    def _json_head(self, row: int) -> str:
        """A node as JSON; of a directory what stands in front of its entries."""
        columns = self._columns
        kind = columns.kinds[row]
        if kind == _DIRECTORY_NODE:
            return '{"type":"directory","entries":{'
        if kind == _SYMLINK_NODE:
            return f'{{"type":"symlink","target":{encode_basestring_ascii(self._target(row))}}}'
        executable = ',"executable":true' if kind == _EXECUTABLE_FILE else ""
        return f'{{"type":"regular","size":{columns.sizes[row]}{executable},"narOffset":{columns.starts[row]}}}'

    def _node(self, row: int) -> Node:
        columns = self._columns
        kind = columns.kinds[row]
        name = self._name(row)
        if kind == _DIRECTORY_NODE:
            return Node(row, Kind.DIRECTORY, name, 0, False, 0, "")
        if kind == _SYMLINK_NODE:
            return Node(row, Kind.SYMLINK, name, 0, False, 0, self._target(row))
        return Node(row, Kind.REGULAR, name, columns.sizes[row], kind == _EXECUTABLE_FILE, columns.starts[row], "")

    def _raw_name(self, row: int) -> bytes:
        ends = self._columns.name_ends
        return bytes(self._columns.names[ends[row - 1] if row else 0 : ends[row]])

    def _name(self, row: int) -> str:
        return to_text(self._raw_name(row))

    def _target(self, row: int) -> str:
        start = self._columns.starts[row]
        return to_text(self._columns.targets[start : start + self._columns.sizes[row]])

    def _places(self, row: int) -> range:
        """Where the entries of a node stand in ``children``."""
        columns = self._columns
        if columns.kinds[row] != _DIRECTORY_NODE:
            return range(0)
        start = columns.starts[row]
        return range(start, start + columns.sizes[row])

    def _child_rows(self, row: int) -> Iterator[int]:
        return map(self._columns.children.__getitem__, self._places(row))


class ListingBuilder:
    """Makes a listing of the events of one NAR, while they come.

    The events must be valid in themselves and in order, as NarParser gives them and NarWriter demands them. Data may
    lack, and so may End and a Regular's ``nar_offset`` (0): they are computed, and checked where they are there. Any
    ListingError leaves the builder useless.
    """

    __slots__ = ("_columns", "_open", "_position", "_siblings")

    def __init__(self) -> None:
        self._columns = _Columns()
        self._position = _BEFORE_ROOT  # in the NAR
        self._siblings = array(
            "I"
        )  # the rows of the entries so far, of the directory that is open; outermost: the root's
        self._open: list[tuple[int, array[int]]] = []  # for each open directory its row, and the siblings around it

    def add(self, event: NarEvent) -> None:
        """Take one event; `add_all` is faster for many."""
        self.add_all((event,))

    def add_all(self, events: Iterable[NarEvent]) -> None:
        """Take the next events, any number of them."""
        try:
            self._add_all(events)
        except OverflowError as error:
            raise ListingError("a size or an offset is out of bounds") from error

    def _add_all(self, events: Iterable[NarEvent]) -> None:
        # One loop over local names, and long for that: a NAR may have hundreds of thousands of entries, and this runs
        # for each of them, beside the parser and the hashing.
        columns, siblings, position = self._columns, self._siblings, self._position
        kinds, names, name_ends = columns.kinds, columns.names, columns.name_ends
        sizes, starts = columns.sizes, columns.starts
        for event in events:
            if isinstance(event, Data):
                continue
            if isinstance(event, DirectoryEnd):
                position += _CLOSE
                siblings = self._close(siblings)
                continue
            if isinstance(event, End):
                self._check_end(event.nar_size, position)
                continue
            row = len(kinds)
            siblings.append(row)
            name = event.name
            names += name
            name_ends.append(len(names))
            position += _HEAD + (len(name) + 7 & -8)
            if isinstance(event, Regular):
                _, executable, size, nar_offset = event
                position += _EXECUTABLE if executable else _REGULAR
                if nar_offset and nar_offset != position:
                    raise ListingError(f"narOffset {nar_offset} instead of {position}", where=listing_json.shown(name))
                kinds.append(_EXECUTABLE_FILE if executable else _PLAIN_FILE)
                sizes.append(size)
                starts.append(position)
                position += (size + 7 & -8) + _CLOSE
            elif isinstance(event, Symlink):
                target = event.target
                kinds.append(_SYMLINK_NODE)
                sizes.append(len(target))
                starts.append(len(columns.targets))
                columns.targets += target
                position += _SYMLINK + (len(target) + 7 & -8) + _CLOSE
            else:
                kinds.append(_DIRECTORY_NODE)
                sizes.append(0)
                starts.append(0)
                position += _DIRECTORY
                self._open.append((row, siblings))
                siblings = array("I")
            if row == NODES_MAX:
                raise ListingError(f"more than {NODES_MAX} entries")
        self._siblings, self._position = siblings, position

    def _close(self, entries: "array[int]") -> "array[int]":
        """End the innermost directory, which has ``entries``; gives its siblings."""
        if not self._open:
            raise ListingError("a directory ends that never began")
        columns = self._columns
        row, siblings = self._open.pop()
        columns.sizes[row] = len(entries)
        columns.starts[row] = len(columns.children)
        columns.children += entries
        return siblings

    @staticmethod
    def _check_end(nar_size: int, position: int) -> None:
        if nar_size != position + _BEHIND_ROOT:
            raise ListingError(f"the tree takes {position + _BEHIND_ROOT} bytes of NAR, and not {nar_size}")

    def finish(self) -> NarListing:
        """The listing. ListingError if the events so far are not one whole tree."""
        if self._open or len(self._siblings) != 1:
            raise ListingError("not one whole tree")
        return NarListing(self._columns, self._position + _BEHIND_ROOT)


def contents_prefix(node: Node) -> bytes:
    """What stands in the NAR right in front of the ``nar_offset`` of a regular file: the contents tag and the length.

    An offset out of an ``.ls`` file is right only if these bytes are there.
    """
    return _CONTENTS + wire.U64.pack(node.size)
