"""Random access to a NAR: a listing that says where each file is, and something that gives the bytes there.

Where those come from (a file on disk, a download under way, a part of a remote file, a stream that is skipped over) is the
business of whoever made the accessor; nobody above it asks.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

from narcore.formats.listing import Kind, NarListing, Node


class NarBytes(Protocol):
    """Some bytes of a NAR, as an iterator to be closed.

    Exactly ``length`` bytes come, or an error is raised: a short read never ends as if all were there.
    """

    length: int

    def __iter__(self) -> Iterator[bytes]: ...
    def close(self) -> None: ...


ReadNode = Callable[[Node, int, int], NarBytes]


class NarAccessor:
    """The files of one NAR."""

    def __init__(
        self, listing: NarListing, read_node: ReadNode, *, is_verified: bool, is_cached: Callable[[], bool]
    ) -> None:
        """``read_node`` gives bytes of a regular file, from one place in it to another. ``is_verified``: the listing is the
        NAR's own, and not just what its store says.
        """
        self.listing = listing
        self.is_verified = is_verified
        self._read_node = read_node
        self._at_hand = is_cached

    @property
    def is_cached(self) -> bool:
        """Whether the NAR is in the disk cache, complete and verified: reading costs no download."""
        return self._at_hand()

    def read(self, node: Node, start: int = 0, stop: int | None = None) -> NarBytes:
        """Bytes ``start`` to ``stop`` (default: the end) of a regular file. Raises ValueError for a range that it has not."""
        stop = node.size if stop is None else stop
        if node.kind is not Kind.REGULAR or not 0 <= start <= stop <= node.size:
            raise ValueError(f"no bytes {start} to {stop} in a {node.kind} of {node.size} bytes")
        return self._read_node(node, start, stop)

    def read_span(self, first: Node, last: Node) -> NarBytes:
        """The NAR from the contents of one file to the end of those of another, behind it in the NAR's order."""
        return self._read_node(first, 0, last.nar_offset + last.size - first.nar_offset)
