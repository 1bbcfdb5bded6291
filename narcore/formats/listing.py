"""NAR listings: the names, types, sizes and offsets of the files in a NAR (the ``.ls`` files of a binary cache).

A listing may have a million entries, so entries are not stored as objects: a NarListing consists of a few columns, and a Node is
created on demand. An ``.ls`` file is not signed, so its offsets are not trusted. The offsets and the NAR
size are computed from the tree, and the computed NAR size has to equal the NarSize of the narinfo.

Names and targets are bytes in a NAR and ``str`` here: UTF-8 with surrogateescape, which preserves any bytes.
"""

import enum
import struct
import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import accumulate, pairwise
from json.encoder import encode_basestring_ascii

from narcore.errors import ListingError
from narcore.formats import listing_json
from narcore.formats.names import to_bytes, to_text
from narcore.formats.nar import wire
from narcore.formats.nar.events import Data, DirectoryEnd, End, NarEvent, Regular, Symlink

NODES_MAX = 2**22
"""The limit of entries in one listing: ten times as many as the largest known packages have. The columns then take about 200 MB."""

MEMORY_MAX = 160 << 20
"""The limit of memory, in bytes, for reading an ``.ls`` file. The estimate is conservative: actual use is at most 100 MiB."""

_JSON_CHUNK = 64 * 1024

# The sizes of the fixed parts of a directory entry in a NAR; the padded name and the padded contents are added to them.
_HEAD = len(wire.ENTRY) + 8 + len(wire.NODE)
_REGULAR = len(wire.REGULAR) + 8
_EXECUTABLE = len(wire.EXECUTABLE) + 8
_SYMLINK = len(wire.SYMLINK) + 8
_DIRECTORY = len(wire.DIRECTORY)
_CLOSE = len(wire.CLOSE_ENTRY)
# Sizes are computed as if the root were an entry with an empty name. These two corrections, in bytes, apply before
# and after the root.
_BEFORE_ROOT = len(wire.ROOT) - _HEAD
_AFTER_ROOT = len(wire.CLOSE) - _CLOSE

_CONTENTS = wire.token(b"contents")

_PACKED_COUNTS = struct.Struct("<4Q")  # nodes, bytes of names, children, bytes of targets


class Kind(enum.StrEnum):
    """The type of a node, as listings name it."""

    REGULAR = "regular"
    DIRECTORY = "directory"
    SYMLINK = "symlink"


_PLAIN_FILE, _EXECUTABLE_FILE, _DIRECTORY_NODE, _SYMLINK_NODE = range(4)
_KINDS = (Kind.REGULAR, Kind.REGULAR, Kind.DIRECTORY, Kind.SYMLINK)


@dataclass(frozen=True, slots=True)
class Node:
    """One node of a listing. Fields that don't apply to its kind are 0, False or "".

    ``name`` is "" for the root. ``size`` and ``nar_offset`` are in bytes: the contents of a regular file are the bytes of the
    NAR from ``nar_offset`` to ``nar_offset + size``. ``index`` is the node's row in its listing.
    """

    index: int
    kind: Kind
    name: str
    size: int
    executable: bool
    nar_offset: int
    target: str


class _Columns:
    """The nodes in NAR order, one row each; 25 bytes per row, plus names and targets."""

    __slots__ = ("children", "kinds", "name_ends", "names", "sizes", "starts", "targets")

    def __init__(self) -> None:
        self.kinds = bytearray()
        self.names = bytearray()  # all names, concatenated
        self.name_ends = array("I")
        self.sizes = array("Q")  # a file's contents in bytes; a directory's number of entries; a target in bytes
        # The offset of a file's contents in the NAR; of a directory's entries in ``children``; of a target in ``targets``.
        self.starts = array("Q")
        # Row numbers. The numbers of one directory's entries are adjacent, in byte order of the names.
        self.children = array("I")
        self.targets = bytearray()


class _PackedColumns:
    """The columns of a listing in packed form, as views of the packed bytes."""

    __slots__ = _Columns.__slots__

    def __init__(self, data: memoryview) -> None:
        """Raises ListingError if ``data`` does not have exactly the size of the columns."""
        if len(data) < _PACKED_COUNTS.size:
            raise ListingError("a packed listing ends early")
        nodes, names, children, targets = _PACKED_COUNTS.unpack_from(data)
        sections = (nodes, names, 4 * nodes, 8 * nodes, 8 * nodes, 4 * children, targets)
        ends = tuple(accumulate(sections, initial=_PACKED_COUNTS.size))
        if ends[-1] != len(data) or not nodes:
            raise ListingError(f"a packed listing has {len(data)} bytes instead of {ends[-1]}")
        views = [data[start:end] for start, end in pairwise(ends)]
        self.kinds, self.names, self.targets = views[0], views[1], views[6]
        self.name_ends, self.children = _numbers("I", views[2]), _numbers("I", views[5])
        self.sizes, self.starts = _numbers("Q", views[3]), _numbers("Q", views[4])


class NarListing:
    """The tree in a NAR of ``nar_size`` bytes; ``len()`` is the number of its nodes, including the root."""

    __slots__ = ("_columns", "_sums", "nar_size")

    def __init__(self, columns: _Columns | _PackedColumns, nar_size: int) -> None:
        self._columns = columns
        # For each row, the size of all file contents before it; computed on demand.
        self._sums: array[int] | None = None
        self.nar_size = nar_size

    @classmethod
    def parse(cls, data: bytes, *, nar_size: int) -> "NarListing":
        """Read a decompressed ``.ls`` file for a NAR of ``nar_size`` bytes.

        Raises ListingError if the file breaks the format or a rule of NARs, is not complete, or has a wrong offset, or if its NAR
        would not have ``nar_size`` bytes. Also raises ListingError if reading the file could take more than MEMORY_MAX bytes,
        which may happen from about 200,000 entries on. (Reading the NAR itself takes little memory.)
        """
        if listing_json.memory_needed(data) > MEMORY_MAX:
            raise ListingError("reading the listing would take too much memory")
        listing = cls.from_events(listing_json.events(data))
        if listing.nar_size != nar_size:
            raise ListingError(f"the listing describes a NAR of {listing.nar_size} bytes instead of {nar_size}")
        return listing

    @classmethod
    def from_events(cls, events: Iterable[NarEvent]) -> "NarListing":
        """Return the listing of the NAR with these events; see `ListingBuilder`."""
        builder = ListingBuilder()
        builder.add_all(events)
        return builder.finish()

    @classmethod
    def from_packed(cls, data: bytes | memoryview, *, nar_size: int) -> "NarListing":
        """Return the listing from the output of `to_packed`. Takes the same short time for any listing, because nothing is parsed.

        The listing refers to ``data``. Only the sizes of the columns are checked, so ``data`` must come from a trusted source:
        with other data, the methods of the listing may raise IndexError. Raises ListingError if ``data`` has a wrong size.
        """
        return cls(_PackedColumns(memoryview(data)), nar_size)

    def to_packed(self) -> bytes:
        """Return the listing in a form that can be searched without parsing: its columns, one after another.

        Four counts (nodes, bytes of names, children, bytes of targets), then the columns kinds, names, name ends, sizes, starts,
        children and targets. All numbers are little-endian; counts, sizes and starts have 8 bytes, name ends and children 4.
        """
        return b"".join(self.packed_chunks())

    def packed_chunks(self) -> "Iterator[bytes | bytearray | memoryview | array[int]]":
        """Yield the packed form in parts, without a copy of the columns."""
        columns = self._columns
        yield _PACKED_COUNTS.pack(len(columns.kinds), len(columns.names), len(columns.children), len(columns.targets))
        yield columns.kinds
        yield columns.names
        for numbers in (columns.name_ends, columns.sizes, columns.starts, columns.children):
            yield numbers if sys.byteorder == "little" else _swapped(numbers)
        yield columns.targets

    def __eq__(self, other: object) -> bool:
        """Return whether both listings describe the same tree, including all names, sizes and targets."""
        if not isinstance(other, NarListing):
            return NotImplemented
        return self.nar_size == other.nar_size and all(
            getattr(self._columns, column) == getattr(other._columns, column)  # noqa: SLF001  the same class
            for column in _Columns.__slots__
        )

    __hash__ = None  # type: ignore[assignment]  # hashing a million entries would take too long

    def __len__(self) -> int:
        return len(self._columns.kinds)

    @property
    def nbytes(self) -> int:
        """The approximate memory use of this listing in bytes."""
        columns = self._columns
        of_sums: int = self._sums.__sizeof__() if self._sums is not None else 0
        of_columns: int = sum(getattr(columns, name).__sizeof__() for name in columns.__slots__)
        return of_sums + of_columns

    @property
    def root(self) -> Node:
        """The node of the store path itself."""
        return self._node(0)

    def node(self, index: int) -> Node:
        """Return the node with that ``index``. Raises IndexError if the listing has no such node."""
        if not 0 <= index < len(self):
            raise IndexError(f"no node {index} in a listing of {len(self)} nodes")
        return self._node(index)

    def contents(self, index: int) -> tuple[int, int] | None:
        """Return the NAR offset and the length of the contents of node ``index``; None if it is not a regular file.

        Faster than `node`. Raises IndexError if the listing has no such node.
        """
        columns = self._columns
        if not 0 <= index < len(columns.kinds):
            raise IndexError(f"no node {index} in a listing of {len(self)} nodes")
        return (columns.starts[index], columns.sizes[index]) if columns.kinds[index] < _DIRECTORY_NODE else None

    def children(self, node: Node, start: int = 0) -> Iterator[Node]:
        """Yield the entries of a directory in byte order of their names, from number ``start`` on; none for other nodes."""
        return map(self._node, map(self._columns.children.__getitem__, self._places(node.index)[start:]))

    def child(self, node: Node, name: str) -> Node | None:
        """Return the entry ``name`` of a directory; None if there is no such entry or ``node`` is not a directory."""
        try:
            raw_name = to_bytes(name)
        except UnicodeEncodeError:
            return None
        rows, places = self._columns.children, self._places(node.index)
        place = bisect_left(rows, raw_name, places.start, places.stop, key=self._raw_name)
        if place == places.stop or self._raw_name(rows[place]) != raw_name:
            return None
        return self._node(rows[place])

    def count(self, node: Node) -> int:
        """Return the number of entries of a directory; 0 for other nodes."""
        return len(self._places(node.index))

    def total_size(self, node: Node) -> int:
        """Return the total size in bytes of all regular files at the node and below it.

        The rows of a subtree are adjacent, so the result is a difference of two sums. The first call on a listing computes the
        sums, which take 8 bytes per row, and about 5 ms for 100,000 rows.
        """
        sums = self._sums
        if sums is None:
            columns = self._columns
            files = (
                size if kind < _DIRECTORY_NODE else 0 for kind, size in zip(columns.kinds, columns.sizes, strict=True)
            )
            sums = self._sums = array("Q", accumulate(files, initial=0))
        return sums[self._last_row(node.index) + 1] - sums[node.index]

    def fingerprint(self, node: Node) -> str:
        """Return a text that changes if ``node`` or anything below it changes, apart from the node's own name.

        Two listings of the same NAR give the same fingerprint. For a directory, the time grows with the subtree: about 1 ms for
        50,000 rows.
        """
        if node.kind is not Kind.DIRECTORY:
            return f"{node.kind} {node.size} {node.executable} {node.nar_offset} {node.target}"
        columns = self._columns
        first, last = node.index, self._last_row(node.index)
        rows = slice(first, last + 1)
        digest = sha256(memoryview(columns.kinds)[rows])
        # The ends of names, and the positions of entries and of targets, are counted from the beginning of the NAR. They are the
        # same in each listing of the NAR.
        for column in (columns.sizes, columns.starts, columns.name_ends):
            digest.update(memoryview(column)[rows])
        digest.update(memoryview(columns.names)[columns.name_ends[first] : columns.name_ends[last]])
        digest.update(memoryview(columns.targets)[self._targets_below(first, last)])
        return digest.hexdigest()

    def _targets_below(self, first: int, last: int) -> slice:
        """Return the slice of ``targets`` that contains the link targets of rows ``first`` to ``last`` (inclusive)."""
        columns, link = self._columns, bytes((_SYMLINK_NODE,))
        kinds = bytes(columns.kinds[first : last + 1])
        if link not in kinds:
            return slice(0)
        first_link, last_link = first + kinds.index(link), first + kinds.rindex(link)
        return slice(columns.starts[first_link], columns.starts[last_link] + columns.sizes[last_link])

    def _last_row(self, row: int) -> int:
        """Return the last row of the subtree that begins at ``row``: the last entry of its last entry, and so on."""
        columns = self._columns
        while columns.kinds[row] == _DIRECTORY_NODE and columns.sizes[row]:
            row = columns.children[columns.starts[row] + columns.sizes[row] - 1]
        return row

    def json_chunks(self, node: Node | None = None, recursive: bool = True) -> Iterator[bytes]:
        """Yield the ``.ls`` file that describes a node (default: the root) and everything below it, in chunks of about 64 KiB.

        If not recursive, the file contains one level, with child directories as ``{"type":"directory"}``. Fields are in the same
        order as in Nix. Bytes that are not UTF-8 become ``\\udc80`` to ``\\udcff``. Offsets are relative to the whole NAR, so
        `parse` accepts only the recursive listing of the root.
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
        """Return a node as JSON; for a directory, the part before its entries."""
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
        return to_text(bytes(self._columns.targets[start : start + self._columns.sizes[row]]))

    def _places(self, row: int) -> range:
        """Return the positions of a node's entries in ``children``."""
        columns = self._columns
        if columns.kinds[row] != _DIRECTORY_NODE:
            return range(0)
        start = columns.starts[row]
        return range(start, start + columns.sizes[row])

    def _child_rows(self, row: int) -> Iterator[int]:
        return map(self._columns.children.__getitem__, self._places(row))


class ListingBuilder:
    """Builds a listing from the events of one NAR while they arrive.

    The events must be valid and in order, as NarParser produces them and NarWriter requires them. Data and End events may be
    missing, and ``nar_offset`` may be 0: the builder computes sizes and offsets, and compares them with those in the events. After
    a ListingError, the builder must not be used any more.
    """

    __slots__ = ("_columns", "_open", "_position", "_siblings")

    def __init__(self) -> None:
        self._columns = _Columns()
        self._position = _BEFORE_ROOT  # the offset in the NAR
        # The rows of the entries that the current directory has so far. Outside of all directories: the row of the root.
        self._siblings = array("I")
        self._open: list[tuple[int, array[int]]] = []  # for each open directory, its row and the siblings before it

    def add(self, event: NarEvent) -> None:
        """Add one event; `add_all` is faster for several events."""
        self.add_all((event,))

    def add_all(self, events: Iterable[NarEvent]) -> None:
        """Add the next events, any number of them."""
        try:
            self._add_all(events)
        except OverflowError as error:
            raise ListingError("a size or an offset is out of bounds") from error

    def _add_all(self, events: Iterable[NarEvent]) -> None:
        # For speed, this is one long loop that uses only local variables. A NAR may have hundreds of thousands of entries, and the
        # loop body runs for each entry, in addition to parsing and hashing.
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
        """End the innermost directory, whose entries are the rows ``entries``; return the rows of its siblings."""
        if not self._open:
            raise ListingError("the end of a directory without its beginning")
        columns = self._columns
        row, siblings = self._open.pop()
        columns.sizes[row] = len(entries)
        columns.starts[row] = len(columns.children)
        columns.children += entries
        return siblings

    @staticmethod
    def _check_end(nar_size: int, position: int) -> None:
        if nar_size != position + _AFTER_ROOT:
            raise ListingError(f"the tree takes {position + _AFTER_ROOT} bytes as a NAR instead of {nar_size}")

    def finish(self) -> NarListing:
        """Return the listing. Raises ListingError if the events so far are not one complete tree."""
        if self._open or len(self._siblings) != 1:
            raise ListingError("not one complete tree")
        return NarListing(self._columns, self._position + _AFTER_ROOT)


def _numbers(typecode: str, data: memoryview) -> "memoryview | array[int]":
    """Return the little-endian numbers in ``data``: the bytes themselves, or a converted copy on a big-endian machine."""
    numbers = data.cast(typecode)  # type: ignore[call-overload]  # not a literal
    return numbers if sys.byteorder == "little" else _swapped(numbers)


def _swapped(numbers: "memoryview | array[int]") -> "array[int]":
    """Return a copy with the other byte order."""
    copy = array(memoryview(numbers).format, numbers.tobytes())
    copy.byteswap()
    return copy


def contents_prefix(node: Node) -> bytes:
    """Return the bytes before the contents of a regular file in the NAR: the contents tag and the length.

    An offset in an ``.ls`` file is correct only if the NAR has these bytes directly before the offset.
    """
    return _CONTENTS + wire.U64.pack(node.size)
