"""The entries of a directory as table rows, their order, and breadcrumbs."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import NamedTuple

from api.http.noderef import NodeRef
from api.http.text import quote_path
from narcore.formats.listing import Kind, NarListing, Node
from narcore.formats.storepath import is_base_name
from narcore.sizes import human_size

# Rows of one <tbody>: a browser lays out only those groups that are in sight.
_GROUP = 200


class Link(NamedTuple):
    label: str
    href: str


class Switch(NamedTuple):
    """A link that turns something on, or off if it ``is_on``."""

    label: str
    href: str
    is_on: bool


class EntryRow(NamedTuple):
    """A line of the page. Names are raw: the template spells them out and escapes them."""

    name: str
    href: str  # of the node itself
    kind: str
    executable: bool
    size: str
    exact_size: str
    target: str
    target_href: str


class Order(NamedTuple):
    """How the entries are sorted: the default is the order of the NAR, by the bytes of the names."""

    by_size: bool = False
    folders_first: bool = False

    @classmethod
    def of(cls, query: Mapping[str, str]) -> "Order":
        """``?sort=size`` and ``?folders=first``; what is not known is left aside."""
        return cls(query.get("sort") == "size", query.get("folders") == "first")

    @property
    def query(self) -> str:
        return "&".join([*["sort=size"] * self.by_size, *["folders=first"] * self.folders_first])

    def nodes(self, listing: NarListing, node: Node) -> Iterable[Node]:
        """The entries, made one by one in the default order; the largest comes first by size."""
        if self == Order():
            return listing.children(node)
        nodes = list(listing.children(node))
        if self.by_size:
            nodes.sort(key=listing.total_size, reverse=True)
        if self.folders_first:
            nodes.sort(key=lambda child: child.kind is not Kind.DIRECTORY)
        return nodes


def breadcrumbs(ref: NodeRef) -> list[Link]:
    """The store path and each directory down to this one, as relative links, which hold under any prefix and host."""
    names = [ref.store_path.rpartition("/")[2], *filter(None, ref.path.split("/"))]
    return [Link(name, "../" * (len(names) - 1 - depth) or "./") for depth, name in enumerate(names)]


def file_breadcrumbs(ref: NodeRef, href: str) -> list[Link]:
    """The same for a file, whose own link is ``href``. A store path that is itself a file has no directory to lead to."""
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
    """One EntryRow an entry, made when it is asked for. ``prefix`` comes before absolute targets."""
    for child in nodes:
        # "./": without it, a name with a colon could pass for a scheme.
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
    """Where the target's own text leads, or "" if that is out of the store.

    Where the text alone can't tell (``..`` behind a name that may itself be a link; a way out of this store path, or store dir), it
    is ``href``, the link itself: the server follows it.
    """
    steps = [step for step in link.target.split("/") if step not in ("", ".")]
    ups = next((index for index, step in enumerate(steps) if step != ".."), len(steps))
    path = "/".join(steps)
    if link.target.startswith("/"):
        inside = f"/{path}".startswith(f"{ref.store_dir}/") and ".." not in steps
        if inside:
            return f"{prefix}/{quote_path(path)}"
        return href if any(map(is_base_name, steps)) else ""  # perhaps into another store dir
    depth = ref.path.count("/") + 1 if ref.path else 0
    return href if ups > depth or ".." in steps[ups:] else f"./{quote_path(path)}"
