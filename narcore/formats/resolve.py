"""Resolves a path inside a store path to a node of the NAR's listing, or to the path that its links lead to.

Nothing is fetched. Inside this NAR, links are followed as the kernel does. Outside of this NAR, paths are only resolved lexically,
because following links there would require another NAR.
"""

from dataclasses import dataclass

from narcore.errors import NoSuchNode, NotADirectory, OutsideStore, SymlinkLoop
from narcore.formats.listing import Kind, NarListing, Node
from narcore.formats.storepath import DEFAULT_STORE_DIR, StorePath, is_base_name

MAX_LINKS = 40  # the limit of Linux (MAXSYMLINKS in include/linux/namei.h)


@dataclass(frozen=True, slots=True)
class Found:
    """The node at the path; no link was followed. ``path`` has no slash at either end; "" is the root."""

    node: Node
    path: str


@dataclass(frozen=True, slots=True)
class Inside:
    """A link leads to ``path`` in the same store path. The path of a directory ends in a slash (the root's is "/")."""

    path: str


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A link leads into another store path. ``path`` is absolute. It is not known whether any store has this ``store_dir``."""

    path: str
    store_dir: str = DEFAULT_STORE_DIR


Outcome = Found | Inside | Elsewhere


def resolve(listing: NarListing, store_path: StorePath, path: str, *, follow_last: bool = True) -> Outcome:
    """Resolve ``path`` in the NAR of ``store_path``. Leading, trailing and repeated slashes are ignored.

    Without ``follow_last``, a link at the path itself is the result, as with lstat(2).

    Raises NoSuchNode, NotADirectory, SymlinkLoop or OutsideStore, with a message that may be shown to the client.
    """
    segments = [segment for segment in path.split("/") if segment]
    if any(segment in (".", "..") for segment in segments):
        raise NoSuchNode(f"{store_path.base_name} has no {path.strip('/')!r}: no file in a NAR is named . or ..")
    return _Walk(listing, store_path, follow_last=follow_last).run(segments)


class _Walk:
    """The state of one lookup: the current node, and the segments still to walk (last segment first)."""

    def __init__(self, listing: NarListing, store_path: StorePath, *, follow_last: bool) -> None:
        self.listing = listing
        self.store_path = store_path
        self.follow_last = follow_last
        self.own_place = [*store_path.store_dir.strip("/").split("/"), store_path.base_name]
        self.names: list[str] = []  # the names of self.nodes without the root
        self.nodes: list[Node] = [listing.root]
        self.pending: list[str] = []
        self.links = 0
        self.last_link = ""
        # The followed links whose targets are still being walked. Each has the length of ``pending`` before the target was added.
        self.open_links: list[tuple[int, str]] = []

    def run(self, segments: list[str]) -> Outcome:
        self.pending = segments[::-1]
        while True:
            if self.nodes[-1].kind is Kind.SYMLINK and (self.pending or self.follow_last):
                elsewhere = self._follow(self.nodes[-1])
                if elsewhere is not None:
                    return elsewhere
            elif self.pending:
                elsewhere = self._step(self.pending.pop())
                if elsewhere is not None:
                    return elsewhere
            else:
                return self._result()

    def _result(self) -> Outcome:
        node, path = self.nodes[-1], "/".join(self.names)
        if not self.links:
            return Found(node, path)
        return Inside(f"{path}/" if node.kind is Kind.DIRECTORY else path)

    def _step(self, segment: str) -> Elsewhere | None:
        if segment == "..":  # occurs only in the target of a link
            if not self.names:
                return self._outside(self.own_place[:-1])
            self.names.pop()
            self.nodes.pop()
            return None
        here = self.nodes[-1]
        if here.kind is not Kind.DIRECTORY:
            name = "/".join(self.names) or self.store_path.base_name
            raise NotADirectory(f"{name!r} is a file{self._link_note()}")
        child = self.listing.child(here, segment)
        if child is None:
            raise NoSuchNode(
                f"{self.store_path.base_name} has no {'/'.join([*self.names, segment])!r}{self._link_note()}"
            )
        self.names.append(segment)
        self.nodes.append(child)
        return None

    def _follow(self, link: Node) -> Elsewhere | None:
        self.links += 1
        self.last_link = f"{'/'.join(self.names) or self.store_path.base_name} -> {link.target}"
        if self.links > MAX_LINKS:
            raise SymlinkLoop(f"the symbolic links form a loop: {self.last_link}")
        self._close_links()
        self.open_links.append((len(self.pending), self.last_link))
        steps = [step for step in link.target.split("/") if step not in ("", ".")]
        self.pending.extend(reversed(steps))
        if link.target.startswith("/"):
            return self._outside([])
        if not self.names:  # the store path itself is the link: its target is relative to the store dir
            return self._outside(self.own_place[:-1])
        self.names.pop()
        self.nodes.pop()
        return None

    def _outside(self, place: list[str]) -> Elsewhere | None:
        """Continue at ``place``, a path outside the NAR, until the walk comes back inside or ends."""
        while self.pending:
            step = self.pending.pop()
            place = place[:-1] if step == ".." else [*place, step]
            if place == self.own_place:
                self.names, self.nodes = [], [self.listing.root]
                return None
        return Elsewhere("/" + "/".join(place), "/" + "/".join(place[: self._depth_of_store_dir(place)]))

    def _depth_of_store_dir(self, place: list[str]) -> int:
        """Return how many segments of ``place`` form its store dir.

        This is either this NAR's store dir, or all segments before the first segment that is a store path's base name.
        """
        ours = self.own_place[:-1]
        if place[: len(ours)] == ours and len(place) > len(ours):
            if is_base_name(place[len(ours)]):
                return len(ours)
            raise OutsideStore(f"the link {self.last_link} does not lead to a store path")
        for depth, segment in enumerate(place):
            if depth and is_base_name(segment):
                return depth
        raise OutsideStore(f"the link {self.last_link} leads out of {self.store_path.store_dir}")

    def _close_links(self) -> None:
        """Drop the links whose targets were walked to the end: ``pending`` has no segment from these targets."""
        while self.open_links and self.open_links[-1][0] > len(self.pending):
            self.open_links.pop()

    def _link_note(self) -> str:
        """Return a note for an error about the name just taken from ``pending``: which link led to it; "" if none did."""
        self._close_links()
        if self.open_links:
            return f": the link {self.open_links[-1][1]} dangles"
        return f" (reached through the link {self.last_link})" if self.links else ""
