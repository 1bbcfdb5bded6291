"""The nodes of a subtree in the NAR's order, and the contents of its files out of one read over all of them."""

from collections.abc import Iterator

from narcore.errors import TruncatedStream
from narcore.formats.listing import Kind, NarListing, Node
from narcore.nars.accessor import NarAccessor, NarBytes


def walk(listing: NarListing, node: Node, name: str) -> Iterator[tuple[str, Node]]:
    """Every node of the subtree with its path, which begins with ``name``; a directory comes before what is in it."""
    yield name, node
    open_directories = [(name, listing.children(node))]
    while open_directories:
        path, children = open_directories[-1]
        child = next(children, None)
        if child is None:
            open_directories.pop()
            continue
        below = f"{path}/{child.name}"
        yield below, child
        if child.kind is Kind.DIRECTORY:
            open_directories.append((below, listing.children(child)))


class Contents:
    """The files' contents, each taken once and in order. Close it."""

    def __init__(self, accessor: NarAccessor, node: Node) -> None:
        """Reads the first bytes at once, so that what fails from the start fails here; nothing if no file has a byte."""
        first, last = _ends(accessor.listing, node)
        self._bytes: NarBytes | None = accessor.read_span(first, last) if first and last else None
        self._chunks = iter(self._bytes) if self._bytes else iter(())
        self._position = first.nar_offset if first else 0
        self._rest = b""
        if self._bytes:
            try:
                self._next()
            except BaseException:
                self.close()
                raise

    def of(self, file: Node) -> Iterator[bytes]:
        """The contents of ``file``, which is the next one with any."""
        if file.size:
            self._skip(file.nar_offset)
        left = file.size
        while left:
            chunk = self._next()[:left]
            self._consume(len(chunk))
            left -= len(chunk)
            yield chunk

    def close(self) -> None:
        if self._bytes is not None:
            self._bytes.close()

    def _skip(self, position: int) -> None:
        while self._position < position:
            self._consume(min(len(self._next()), position - self._position))

    def _next(self) -> bytes:
        if not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                raise TruncatedStream("the NAR ends within the files of an archive")
            self._rest = chunk
        return self._rest

    def _consume(self, size: int) -> None:
        self._position += size
        self._rest = self._rest[size:]


def _ends(listing: NarListing, node: Node) -> tuple[Node | None, Node | None]:
    """The first and the last file that has any bytes."""
    first = last = None
    for _path, entry in walk(listing, node, ""):
        if entry.size:
            first, last = first or entry, entry
    return first, last
