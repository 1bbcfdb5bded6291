"""A path inside a store path + the NAR's listing -> what is there, or where it leads.

Pure: nothing is fetched. Links are followed as the kernel would, as far as this NAR goes; outside of it the walk is lexical,
since only another NAR could tell more.
"""

from dataclasses import dataclass

from narcore.errors import NoSuchNode, NotADirectory, OutsideStore, SymlinkLoop
from narcore.formats.listing import Kind, NarListing, Node
from narcore.formats.storepath import DEFAULT_STORE_DIR, StorePath, is_base_name

MAX_LINKS = 40  # as many as Linux follows (MAXSYMLINKS in include/linux/namei.h)


@dataclass(frozen=True, slots=True)
class Found:
    """The node that the path names, without a link on the way. ``path`` has no slash at either end; "" is the root."""

    node: Node
    path: str


@dataclass(frozen=True, slots=True)
class Inside:
    """A link on the way leads to this path of the same store path; a directory's ends in a slash (the root's is "/")."""

    path: str


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A link on the way leads into another store path; ``path`` is absolute. Its store dir need not be one that anybody has."""

    path: str
    store_dir: str = DEFAULT_STORE_DIR


Outcome = Found | Inside | Elsewhere


def resolve(listing: NarListing, store_path: StorePath, path: str, *, follow_last: bool = True) -> Outcome:
    """What ``path`` (slashes at the ends and repeated ones don't count) names in the NAR of ``store_path``.

    Without ``follow_last``, a link that the path itself names is what is found, as with lstat(2).

    Raises NoSuchNode, NotADirectory, SymlinkLoop or OutsideStore, with a message that is fit for whoever asked.
    """
    segments = [segment for segment in path.split("/") if segment]
    if any(segment in (".", "..") for segment in segments):
        raise NoSuchNode(f"{store_path.base_name} has no {path.strip('/')!r}: no file of a NAR is called . or ..")
    return _Walk(listing, store_path, follow_last=follow_last).run(segments)


class _Walk:
    """One look-up: where it stands, and what is still to be walked (last segment first)."""

    def __init__(self, listing: NarListing, store_path: StorePath, *, follow_last: bool) -> None:
        self.listing = listing
        self.store_path = store_path
        self.follow_last = follow_last
        self.home = [*store_path.store_dir.strip("/").split("/"), store_path.base_name]
        self.names: list[str] = []  # the names of self.nodes but the root's
        self.nodes: list[Node] = [listing.root]
        self.todo: list[str] = []
        self.links = 0
        self.last_link = ""

    def run(self, segments: list[str]) -> Outcome:
        self.todo = segments[::-1]
        while True:
            if self.nodes[-1].kind is Kind.SYMLINK and (self.todo or self.follow_last):
                elsewhere = self._follow(self.nodes[-1])
                if elsewhere is not None:
                    return elsewhere
            elif self.todo:
                elsewhere = self._step(self.todo.pop())
                if elsewhere is not None:
                    return elsewhere
            else:
                return self._arrived()

    def _arrived(self) -> Outcome:
        node, path = self.nodes[-1], "/".join(self.names)
        if not self.links:
            return Found(node, path)
        return Inside(f"{path}/" if node.kind is Kind.DIRECTORY else path)

    def _step(self, segment: str) -> Elsewhere | None:
        if segment == "..":  # only a link's target holds these
            if not self.names:
                return self._outside(self.home[:-1])
            self.names.pop()
            self.nodes.pop()
            return None
        here = self.nodes[-1]
        if here.kind is not Kind.DIRECTORY:
            raise NotADirectory(f"{'/'.join(self.names) or self.store_path.base_name!r} is a file{self._because()}")
        child = self.listing.child(here, segment)
        if child is None:
            raise NoSuchNode(
                f"{self.store_path.base_name} has no {'/'.join([*self.names, segment])!r}{self._because()}"
            )
        self.names.append(segment)
        self.nodes.append(child)
        return None

    def _follow(self, link: Node) -> Elsewhere | None:
        self.links += 1
        self.last_link = f"{'/'.join(self.names) or self.store_path.base_name} -> {link.target}"
        if self.links > MAX_LINKS:
            raise SymlinkLoop(f"the links go round in a loop: {self.last_link}")
        steps = [step for step in link.target.split("/") if step not in ("", ".")]
        self.todo.extend(reversed(steps))
        if link.target.startswith("/"):
            return self._outside([])
        if not self.names:  # the store path itself is the link: its target counts from the store dir
            return self._outside(self.home[:-1])
        self.names.pop()
        self.nodes.pop()
        return None

    def _outside(self, place: list[str]) -> Elsewhere | None:
        """Walk on from a place outside the NAR, until inside again or at an end."""
        while self.todo:
            step = self.todo.pop()
            place = place[:-1] if step == ".." else [*place, step]
            if place == self.home:
                self.names, self.nodes = [], [self.listing.root]
                return None
        return Elsewhere("/" + "/".join(place), "/" + "/".join(place[: self._depth_of_store_dir(place)]))

    def _depth_of_store_dir(self, place: list[str]) -> int:
        """How many segments of a path outside are its store dir: ours, or else what comes before a store path's base name."""
        ours = self.home[:-1]
        if place[: len(ours)] == ours and len(place) > len(ours):
            if is_base_name(place[len(ours)]):
                return len(ours)
            raise OutsideStore(f"the link {self.last_link} leads to no store path")
        for depth, segment in enumerate(place):
            if depth and is_base_name(segment):
                return depth
        raise OutsideStore(f"the link {self.last_link} leads out of {self.store_path.store_dir}")

    def _because(self) -> str:
        return f": the link {self.last_link} dangles" if self.links else ""
