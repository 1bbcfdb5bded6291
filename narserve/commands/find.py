"""``nar-serve find``: finds files by name, in a store path or its closure."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import translate
from functools import partial

import click

from narcore.errors import NarcoreError
from narcore.formats.listing import Kind, NarListing, Node
from narserve.session.session import Opened, Session, session_options
from narserve.session.target import Target, target_argument
from narserve.terminal.exits import NO, exit_code_of, print_error
from narserve.terminal.output import StandardOutput

# Number of store paths of a closure that are opened concurrently: most of the time is spent on round trips to the cache.
CONCURRENCY = 8

_KINDS = {"f": Kind.REGULAR, "d": Kind.DIRECTORY, "l": Kind.SYMLINK}


@click.command(short_help="Find files by name in a store path or its closure.")
@click.argument("path", metavar="PATH", type=target_argument)
@click.argument("glob", metavar="GLOB")
@click.option(
    "--closure", is_flag=True, help="Also search all store paths that PATH refers to, directly or indirectly."
)
@click.option(
    "-t", "--type", "kind", type=click.Choice(tuple(_KINDS)), help="Find only files (f), directories (d) or links (l)."
)
@click.option("-0", "--print0", is_flag=True, help="End each name with a zero byte, for xargs -0.")
@session_options
def find(session: Session, path: Target, glob: str, closure: bool, kind: str | None, print0: bool) -> None:
    """Find files by name in a store path or its closure.

    \b
      nar-serve find <hash> '*.so*'
      nar-serve find <hash> 'share/**/*.desktop'
      nar-serve find --closure <hash> 'libssl*'

    A GLOB without a slash matches names at any depth. A GLOB with a slash matches paths below PATH; ** matches any number
    of directories, including none. Quote the GLOB, so that the shell does not expand * ? [a-z].

    The output can be passed to cat, get and ls. If nothing matches, the exit code is 1.
    """
    search = _Search(StandardOutput(), glob, kind, print0=print0)
    place = session.locate(path, follow=True)
    search.run(place.opened, place.node, place.path)
    worst = 0
    for opened in _others(session, path) if closure else ():
        if isinstance(opened, NarcoreError):
            print_error(opened)
            worst = max(worst, exit_code_of(opened))
        else:
            search.run(opened, opened.accessor.listing.root, "")
    search.out.flush()
    if worst or not search.found:
        raise click.exceptions.Exit(worst or NO)


class _Search:
    """A search over store paths: prints the matches, and records whether there were any."""

    def __init__(self, out: StandardOutput, glob: str, kind: str | None, *, print0: bool) -> None:
        self.out = out
        self.found = False
        self._pattern = Pattern(glob)
        self._kind = _KINDS[kind] if kind else None
        self._print0 = print0

    def run(self, opened: Opened, top: Node, path: str) -> None:
        for node, names in _walk(opened.accessor.listing, top, ()):
            if self._kind in (None, node.kind) and self._pattern.matches(names):
                self.found = True
                self._show(opened.name("/".join(filter(None, (path, *names)))))

    def _show(self, name: str) -> None:
        self.out.write(f"{name}\0" if self._print0 else self.out.name(name) + b"\n")


def _walk(listing: NarListing, node: Node, names: tuple[str, ...]) -> Iterator[tuple[Node, tuple[str, ...]]]:
    """Yield all nodes below ``node``, each with the names on the path from ``node`` (excluded) to it."""
    for child in listing.children(node):
        child_names = (*names, child.name)
        yield child, child_names
        yield from _walk(listing, child, child_names)


class Pattern:
    """A glob of file names. A glob without a slash matches the last name only."""

    def __init__(self, glob: str) -> None:
        segments = [segment for segment in glob.split("/") if segment]
        if "/" not in glob:
            segments.insert(0, "**")
        self._segments = [None if segment == "**" else re.compile(translate(segment)) for segment in segments]

    def matches(self, names: tuple[str, ...]) -> bool:
        """Return whether the glob matches the names on the way from a directory down to a node."""
        reached = self._skipped({0})  # the possible numbers of segments consumed so far
        for name in names:
            reached = self._skipped({after for before in reached for after in self._step(before, name)})
        return len(self._segments) in reached

    def _step(self, place: int, name: str) -> Iterator[int]:
        if place < len(self._segments):
            segment = self._segments[place]
            if segment is None:
                yield place
            elif segment.match(name):
                yield place + 1

    def _skipped(self, places: set[int]) -> set[int]:
        """Add the place after each ``**`` in ``places``, since ``**`` may match zero names."""
        for place in sorted(places):
            while place < len(self._segments) and self._segments[place] is None:
                place += 1
                places.add(place)
        return places


# --- closures


def _others(session: Session, target: Target) -> Iterator[Opened | NarcoreError]:
    """Yield each other store path of the target's closure once, nearest first.

    If a store path can't be opened, its error is yielded instead.
    """
    first = session.open(target).store_path
    seen = {first.base_name}
    with ThreadPoolExecutor(CONCURRENCY, thread_name_prefix="find") as pool:
        references = [session.references(target)]
        while references:
            names = sorted({name for names in references for name in names} - seen)
            seen.update(names)
            references = []
            for outcome in pool.map(partial(_open, session, target, first.store_dir), names):
                if isinstance(outcome, NarcoreError):
                    yield outcome
                else:
                    opened, further = outcome
                    references.append(further)
                    yield opened


def _open(
    session: Session, target: Target, store_dir: str, base_name: str
) -> tuple[Opened, tuple[str, ...]] | NarcoreError:
    """Open a store path. Returns it and its references, or the error."""
    try:
        reference = target.elsewhere(f"{store_dir}/{base_name}")
        return session.open(reference), session.references(reference)
    except NarcoreError as error:
        return error
