"""A subtree as a NAR."""

from collections.abc import Iterator

from narcore.archive.contents import Contents
from narcore.formats.listing import Kind, NarListing, Node
from narcore.formats.names import to_bytes
from narcore.formats.nar.events import Data, Directory, DirectoryEnd, NarEvent, Regular, Symlink
from narcore.formats.nar.writer import write_nar
from narcore.nars.accessor import NarAccessor


def nar(accessor: NarAccessor, node: Node, name: str) -> Iterator[bytes]:
    """Yield the NAR of ``node``. A NAR has no name for its root, so ``name`` is ignored. Raises the errors of reading."""
    contents = Contents(accessor, node)
    try:
        yield from write_nar(_events(accessor.listing, node, contents))
    finally:
        contents.close()


def _events(listing: NarListing, root: Node, contents: Contents) -> Iterator[NarEvent]:
    # One iterator for each open directory, so memory does not grow with the number of entries. The first iterator yields the root.
    open_directories = [iter((root,))]
    while open_directories:
        node = next(open_directories[-1], None)
        if node is None:
            open_directories.pop()
            if open_directories:
                yield DirectoryEnd()
            continue
        name = to_bytes(node.name) if len(open_directories) > 1 else b""
        if node.kind is Kind.DIRECTORY:
            yield Directory(name)
            open_directories.append(listing.children(node))
        elif node.kind is Kind.SYMLINK:
            yield Symlink(name, to_bytes(node.target))
        else:
            yield Regular(name, node.executable, node.size)
            yield from map(Data, contents.of(node))
