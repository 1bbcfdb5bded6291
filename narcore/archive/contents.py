"""The nodes of a subtree in NAR order, and the contents of all its files from a single read."""

from collections.abc import Iterator

from narcore.errors import TruncatedStream
from narcore.formats.listing import Kind, NarListing, Node
from narcore.nars.accessor import NarAccessor, NarBytes


def walk(listing: NarListing, node: Node, name: str) -> Iterator[tuple[str, Node]]:
    """Yield every node of the subtree with its path, which begins with ``name``. A directory comes before its entries."""
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
    """The contents of the files, each read once and in order. Must be closed."""

    def __init__(self, accessor: NarAccessor, node: Node) -> None:
        """Read the first bytes immediately, so that early errors are raised here. Reads nothing if all files are empty."""
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
        """Yield the contents of ``file``, which must be empty or the next non-empty file."""
        if file.size:
            self._skip(file.nar_offset)
        remaining = file.size
        while remaining:
            chunk = self._next()[:remaining]
            self._consume(len(chunk))
            remaining -= len(chunk)
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
    """Return the first and the last non-empty file."""
    first = last = None
    for _path, entry in walk(listing, node, ""):
        if entry.size:
            first, last = first or entry, entry
    return first, last
