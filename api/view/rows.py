"""The entries of a directory as table rows, their order, and breadcrumbs."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import NamedTuple

from api.http.noderef import NodeRef
from api.http.text import quote_path
from api.view.storelinks import Link
from narcore.formats.listing import Kind, NarListing, Node
from narcore.formats.storepath import is_base_name
from narcore.sizes import human_size

# Number of rows in one <tbody>. A browser lays out only the groups that are visible.
_GROUP = 200


class Switch(NamedTuple):
    """A link that turns an option on, or off if it ``is_on``."""

    label: str
    href: str
    is_on: bool


class EntryRow(NamedTuple):
    """A row of the table. Names are raw; the template escapes them."""

    name: str
    href: str  # URL of the node itself
    kind: str
    executable: bool
    size: str
    exact_size: str
    target: str
    target_href: str


class Order(NamedTuple):
    """The order of the entries. The default is the order in the NAR: sorted by the bytes of the names."""

    by_size: bool = False
    folders_first: bool = False

    @classmethod
    def of(cls, query: Mapping[str, str]) -> "Order":
        """Parse ``?sort=size`` and ``?folders=first``. Other values are ignored."""
        return cls(query.get("sort") == "size", query.get("folders") == "first")

    @property
    def query(self) -> str:
        return "&".join([*["sort=size"] * self.by_size, *["folders=first"] * self.folders_first])

    def nodes(self, listing: NarListing, node: Node) -> Iterable[Node]:
        """Return the entries in this order: lazily in the default order, and with the largest first by size."""
        if self == Order():
            return listing.children(node)
        nodes = list(listing.children(node))
        if self.by_size:
            nodes.sort(key=listing.total_size, reverse=True)
        if self.folders_first:
            nodes.sort(key=lambda child: child.kind is not Kind.DIRECTORY)
        return nodes


def breadcrumbs(ref: NodeRef) -> list[Link]:
    """Return links to the store path and to each directory down to ``ref``. They are relative, so any prefix and host works."""
    names = [ref.store_path.rpartition("/")[2], *filter(None, ref.path.split("/"))]
    return [Link(name, "../" * (len(names) - 1 - depth) or "./") for depth, name in enumerate(names)]


def file_breadcrumbs(ref: NodeRef, href: str) -> list[Link]:
    """Return the breadcrumbs of a file; ``href`` is the link to the file. A store path that is a file has no directory above it."""
    if not ref.path:
        return [Link(ref.name, href)]
    names = [ref.store_path.rpartition("/")[2], *ref.path.split("/")]
    above = [Link(name, "../" * (len(names) - 2 - depth) or "./") for depth, name in enumerate(names[:-1])]
    return [*above, Link(names[-1], href)]


def grouped(rows: Iterator[EntryRow]) -> Iterator[list[EntryRow]]:
    while group := list(islice(rows, _GROUP)):
        yield group


def exact_size(size: int) -> str:
    return f"{size:,} byte{'' if size == 1 else 's'}"


def rows(listing: NarListing, nodes: Iterable[Node], ref: NodeRef, prefix: str) -> Iterator[EntryRow]:
    """Yield an EntryRow for each entry. ``prefix`` is the prefix of links to absolute targets."""
    for child in nodes:
        # Without "./", a browser would take a name with a colon for a URL with a scheme.
        href = "./" + quote_path(child.name)
        if child.kind is Kind.SYMLINK:
            target_href = _target_href(child, ref, href, prefix)
            yield EntryRow(child.name, href, "symlink", False, "", "", child.target, target_href)
            continue
        directory = child.kind is Kind.DIRECTORY
        size = listing.total_size(child) if directory else child.size
        kind = child.kind.value
        yield EntryRow(
            child.name, href + "/" * directory, kind, child.executable, human_size(size), exact_size(size), "", ""
        )


def _target_href(link: Node, ref: NodeRef, href: str, prefix: str) -> str:
    """Return the URL for the target of a symbolic link, or "" if the target is outside of the store.

    The text of the target is not always enough to find its URL. A ``..`` may follow a name that is itself a link, or the target may
    be outside of this store path or store dir. In these cases the result is ``href``, the URL of the link itself; the server then
    follows the link.
    """
    steps = [step for step in link.target.split("/") if step not in ("", ".")]
    ups = next((index for index, step in enumerate(steps) if step != ".."), len(steps))
    path = "/".join(steps)
    if link.target.startswith("/"):
        inside = f"/{path}".startswith(f"{ref.store_dir}/") and ".." not in steps
        if inside:
            return f"{prefix}/{quote_path(path)}"
        return href if any(map(is_base_name, steps)) else ""  # may lead into another store dir
    depth = ref.path.count("/") + 1 if ref.path else 0
    return href if ups > depth or ".." in steps[ups:] else f"./{quote_path(path)}"
