"""Random access to a NAR: a listing, which has the offset of each file, and a function that reads bytes at an offset.

The creator of the accessor decides where the bytes come from: a file on disk, a running download, a range of a remote file, or a
stream whose beginning is discarded. Callers of the accessor need not know the source.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from narcore.errors import InOtherStorePath, NotADirectory
from narcore.formats.listing import Kind, NarListing, Node
from narcore.formats.resolve import Elsewhere, Found, Outcome, resolve
from narcore.formats.storepath import StorePath


class NarBytes(Protocol):
    """Some bytes of a NAR: an iterator that must be closed.

    It yields exactly ``length`` bytes or raises an error; it never ends early without an error.

    If ``is_verified`` is True, the iterator also raises an error if the NAR does not match its NarHash, or does not match the
    listing that gave the position of the bytes. If False, the bytes are unverified even after all of them were read.
    """

    @property
    def length(self) -> int: ...
    @property
    def is_verified(self) -> bool: ...
    def __iter__(self) -> Iterator[bytes]: ...
    def close(self) -> None: ...


ReadNode = Callable[[Node, int, int], NarBytes]


@dataclass(frozen=True, slots=True)
class NoBytes:
    """The contents of an empty file. ``is_verified``: the listing that was made from the NAR says that the file is empty."""

    is_verified: bool
    length: int = 0

    def __iter__(self) -> Iterator[bytes]:
        return iter(())

    def close(self) -> None:
        """Do nothing: no resource is open."""


class NarAccessor:
    """The files of one NAR."""

    def __init__(
        self,
        store_path: StorePath,
        listing: NarListing,
        read_node: ReadNode,
        *,
        is_verified: bool,
        is_cached: Callable[[], bool],
    ) -> None:
        """Create an accessor. ``read_node`` reads a range of a regular file.

        ``is_verified``: the listing was made from the verified NAR, and not sent by its store.
        """
        self.store_path = store_path
        self.listing = listing
        self.is_verified = is_verified
        self._read_node = read_node
        self._is_cached = is_cached

    def watched(self, on_read: Callable[[NarBytes], None]) -> "NarAccessor":
        """Return an accessor of the same files that calls ``on_read`` with the bytes that a read opens, before the read returns.

        If ``on_read`` raises, the bytes are closed and the read raises.
        """

        def read(node: Node, start: int, stop: int) -> NarBytes:
            opened = self._read_node(node, start, stop)
            try:
                on_read(opened)
            except BaseException:
                opened.close()
                raise
            return opened

        return NarAccessor(self.store_path, self.listing, read, is_verified=self.is_verified, is_cached=self._is_cached)

    @property
    def is_cached(self) -> bool:
        """Whether the NAR is in the disk cache, complete and verified, so that reading needs no download."""
        return self._is_cached()

    def node(self, path: str) -> Node:
        """Return the file or directory at ``path``, relative to the store path; "" is the store path itself. Follows links.

        Raises a PathError: NoSuchNode, NotADirectory, SymlinkLoop, OutsideStore, or InOtherStorePath for a link into another store
        path.
        """
        outcome = resolve(self.listing, self.store_path, path)
        while not isinstance(outcome, Found):
            if isinstance(outcome, Elsewhere):
                raise InOtherStorePath(f"{path!r} leads to {outcome.path}", outcome.path)
            outcome = resolve(self.listing, self.store_path, outcome.path)
        return outcome.node

    def children(self, path: str = "") -> Iterator[Node]:
        """Yield the entries of the directory at ``path``, in the byte order of their names. Raises PathError as `node` does."""
        directory = self.node(path)
        if directory.kind is not Kind.DIRECTORY:
            raise NotADirectory(f"{path!r} is not a directory")
        yield from self.listing.children(directory)

    def read(self, file: Node | str, start: int = 0, stop: int | None = None) -> NarBytes:
        """Read bytes ``start`` up to ``stop`` (default: the end) of a regular file, given as a node or as its path.

        The bytes are fetched while the result is iterated over. Raises ValueError for a range outside the file or a node that is
        not a regular file, and PathError as `node` does. Iterating raises StoreError, CompressionError and IntegrityError.
        """
        node = self.node(file) if isinstance(file, str) else file
        stop = node.size if stop is None else stop
        if node.kind is not Kind.REGULAR or not 0 <= start <= stop <= node.size:
            raise ValueError(f"no bytes {start} to {stop} in a node of type {node.kind} and size {node.size}")
        return self._read_node(node, start, stop)

    def read_span(self, first: Node, last: Node) -> NarBytes:
        """Read the bytes of the NAR from the start of one file's contents to the end of a later file's contents."""
        return self._read_node(first, 0, last.nar_offset + last.size - first.nar_offset)


class Located(NamedTuple):
    """The result of resolving a path, and the accessor whose listing determined it."""

    accessor: NarAccessor
    outcome: Outcome
