"""``nar-serve get``: copies a file, a directory or a store path to disk."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

import click

from narcore.concurrency.closing import close
from narcore.errors import IntegrityError, SettingsError
from narcore.export import dump
from narcore.formats.listing import Kind, NarListing, Node
from narcore.formats.names import to_bytes
from narcore.formats.nar.events import Data, DirectoryEnd, End, NarEvent, Regular, Symlink
from narcore.formats.nar.events import Directory as DirectoryStart
from narcore.formats.nar.parser import parse_nar
from narcore.formats.nar.writer import write_nar
from narcore.lookup.pathinfo import PathInfo
from narcore.nars.wholenar import is_worth_verifying
from narcore.settings import Settings
from narserve.get.staging import ROOT, Destination, destination
from narserve.get.treewriter import FileWriter, TreeWriter
from narserve.session.session import LocatedNode, Session, session_options
from narserve.session.target import Target, target_argument
from narserve.terminal.output import StandardOutput
from narserve.terminal.progress import Tick, progress


@click.command(short_help="Copy a file, a directory or a store path to disk.")
@click.argument("path", metavar="PATH", type=target_argument)
@click.argument("dest", metavar="[DEST]", required=False)
@session_options
def get(session: Session, path: Target, dest: str | None) -> None:
    """Copy a file, a directory or a whole store path to disk.

    \b
      nar-serve get /nix/store/<hash>-hello-2.12           makes ./hello-2.12
      nar-serve get /nix/store/<hash>-hello-2.12/bin b     makes ./b
      nar-serve get /nix/store/<hash>-hello-2.12 /tmp/     makes /tmp/hello-2.12

    DEST is the name of the copy. If DEST ends with a slash, it is the directory in which the copy is created. An existing
    file or directory is never replaced. If the copy already exists, the command fails, unless PATH is a whole store path
    and the copy has the right hash. The name of the copy is printed.

    The copy appears at DEST when it is complete. Until then, its files are in a hidden directory beside DEST. After an
    interruption, run the same command again to continue.

    Links are copied as links. If PATH itself is a link, a slash at its end copies the link's target instead. Executable
    files stay executable. All times are 1 s after the epoch, as in a Nix store.
    """
    place = session.locate(path, follow=False)
    default = place.path.rpartition("/")[2] or place.opened.store_path.name
    with destination(dest, default) as goal:
        if goal.exists():
            _check_same(place, goal)
        else:
            _fetch(session, place, goal)
        out = StandardOutput()
        out.line(goal.path)
        out.flush()


def _check_same(place: LocatedNode, goal: Destination) -> None:
    """Raises SettingsError unless the goal already is a copy of the whole store path, with the right NarHash."""
    info = place.opened.info
    if info is None or place.path or not _has_nar_hash(goal, info):
        raise SettingsError(f"{goal.path} already exists; choose another DEST, or remove it first")


def _has_nar_hash(goal: Destination, info: PathInfo) -> bool:
    sha256 = hashlib.sha256()
    try:
        for chunk in write_nar(dump(Path(goal.path))):
            sha256.update(chunk)
    except (OSError, ValueError):  # the existing file can't be read, or is of a kind that a NAR can't contain
        return False
    return sha256.digest() == info.narinfo.nar_hash.digest


def _fetch(session: Session, place: LocatedNode, goal: Destination) -> None:
    with goal.staged(_staging_name(place)) as fd, closing(TreeWriter(fd)) as writer:
        is_new = not os.listdir(fd)
        if not _in_one_pass(session, place, writer, is_new=is_new):
            by_file(place, writer)


def _staging_name(place: LocatedNode) -> bytes:
    opened = place.opened
    nar_hash = opened.info.narinfo.nar_hash.nix32 if opened.info else ""
    identity = hashlib.sha256(to_bytes("\0".join((nar_hash, place.name)))).hexdigest()
    return f".{opened.store_path.name[:100]}.{identity[:16]}.part".encode()


def _is_best_by_file(settings: Settings, place: LocatedNode, info: PathInfo) -> bool:
    """Return whether to read file by file (True), or to read the NAR from its start (False).

    Reading by file is best for a single file, for a cached NAR, and for a part of the tree if ranges of the remote file can be
    read. A part of the tree is also read by file if the disk cache will store the NAR. The NAR is then fetched only once, and the
    next command can read another part from the cache.
    """
    if place.opened.accessor.is_cached or place.node.kind is not Kind.DIRECTORY:
        return True
    return bool(place.path) and (info.narinfo.compression == "none" or _can_be_cached(settings, info))


def _can_be_cached(settings: Settings, info: PathInfo) -> bool:
    """Return whether the disk cache is on and large enough for the NAR."""
    if settings.cache_dir is None:
        return False
    try:
        return info.narinfo.nar_size <= settings.cache_size.in_bytes(settings.cache_dir)
    except OSError:
        return False


# --- file by file


def by_file(place: LocatedNode, writer: TreeWriter) -> None:
    """Write the node of ``place`` as ROOT, with one read for each file that is missing or incomplete."""
    accessor = place.opened.accessor
    with progress(_label(place), _total(accessor.listing, place.node)) as tick:
        _write_node(place, place.node, ROOT, writer, tick)


def _write_node(place: LocatedNode, node: Node, name: bytes, writer: TreeWriter, tick: Tick) -> None:
    match node.kind:
        case Kind.DIRECTORY:
            writer.directory(name)
            for child in place.opened.accessor.listing.children(node):
                _write_node(place, child, to_bytes(child.name), writer, tick)
            writer.end_directory()
        case Kind.SYMLINK:
            writer.symlink(name, to_bytes(node.target))
        case Kind.REGULAR:
            with closing(writer.file(name, node.executable, node.size)) as file:
                _write_rest(place, node, file, tick)


def _write_rest(place: LocatedNode, node: Node, file: FileWriter, tick: Tick) -> None:
    """Write the missing rest of a file.

    The existing bytes are the beginning of the file, since an earlier run wrote it from the start. If the NAR is cached, so that
    reading costs no download, the existing bytes are compared as well.
    """
    offset = 0 if place.opened.accessor.is_cached else file.have
    tick(offset)
    # Reading an empty file compares an unverified listing with the NAR, if that is cheap.
    if offset < node.size or not (node.size or place.opened.accessor.is_verified):
        with closing(place.opened.accessor.read(node, offset)) as chunks:
            for chunk in chunks:
                file.write(chunk, offset)
                offset += len(chunk)
                tick(len(chunk))
    file.finish()


def _total(listing: NarListing, node: Node) -> int:
    return node.size + sum(_total(listing, child) for child in listing.children(node))


# --- in one pass


def _in_one_pass(session: Session, place: LocatedNode, writer: TreeWriter, *, is_new: bool) -> bool:
    """Write the node of ``place`` from a NAR on the fly. Returns False, with nothing written, if reading by file is better."""
    opened, listing = place.opened, place.opened.accessor.listing
    if opened.instance:
        # If an earlier run has written a part, it is better to request only the missing files.
        chunks = opened.instance.nar(opened.store_path, place.path) if is_new else None
        if chunks is None:
            return False
        total = _total(listing, place.node) if place.path else listing.nar_size
        _write_nar(place, _Reading(chunks, total), [], writer)
        return True
    if opened.info is None or _is_best_by_file(session.settings, place, opened.info):
        return False
    path = [to_bytes(name) for name in place.path.split("/")] if place.path else []
    _write_nar(place, _Reading(session.cache.nar(opened.info), listing.nar_size), path, writer)
    return True


def _write_nar(place: LocatedNode, reading: "_Reading", path: list[bytes], writer: TreeWriter) -> None:
    """Write the node at ``path`` from the NAR that ``reading`` yields.

    The hash is checked at the end of the NAR, so a whole tree is verified before it appears at the destination. If ``path`` is only
    a part of the tree, the rest of the NAR is read, and the hash checked, only if the rest is short enough. Raises IntegrityError
    if the NAR has no node at ``path``.
    """
    with progress(_label(place), reading.total) as reading.tick, closing(reading):
        events = parse_nar(reading)
        if not _write_events(below(events, path), writer):
            raise IntegrityError("the store's listing does not match the NAR")
        if not path or is_worth_verifying(reading.done, reading.total):
            for _event in events:
                pass


class _Reading:
    """The chunks of a NAR, counted as they are read: ``done`` of about ``total`` bytes."""

    def __init__(self, chunks: Iterator[bytes], total: int) -> None:
        self.total = total
        self.done = 0
        self.tick: Tick = lambda _count: None
        self._chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self.done += len(chunk)
            self.tick(len(chunk))
            yield chunk

    def close(self) -> None:
        close(self._chunks)


def below(events: Iterable[NarEvent], path: list[bytes]) -> Iterator[NarEvent]:
    """Yield only the events of the node at ``path``, a list of names below the root; none if there is no such node."""
    top = [b"", *path]
    here: list[bytes] = []
    inside = False
    for event in events:
        if isinstance(event, Data):
            if inside:
                yield event
            continue
        if isinstance(event, End) or (inside and len(here) < len(top)):
            return
        if isinstance(event, DirectoryEnd):
            here.pop()
        elif not inside:
            inside = [*here, event.name] == top
        if isinstance(event, DirectoryStart):
            here.append(event.name)
        if inside:
            yield event
            if isinstance(event, DirectoryEnd) and len(here) < len(top):
                return


def _write_events(events: Iterable[NarEvent], writer: TreeWriter) -> bool:
    """Write the events; the first node becomes ROOT. Returns whether there were any events."""
    file: FileWriter | None = None
    name, offset = ROOT, 0
    found = False
    try:
        for event in events:
            if isinstance(event, Data):
                assert file is not None
                file.write(event.data, offset)
                offset += len(event.data)
                continue
            if file is not None:
                _finish(file)
                file = None
            if isinstance(event, Regular | Symlink | DirectoryStart) and found:
                name = event.name
            found = True
            match event:
                case DirectoryStart():
                    writer.directory(name)
                case DirectoryEnd():
                    writer.end_directory()
                case Symlink(target=target):
                    writer.symlink(name, target)
                case Regular(executable=executable, size=size):
                    file, offset = writer.file(name, executable, size), 0
        if file is not None:
            _finish(file)
            file = None
    finally:
        if file is not None:
            file.close()
    return found


def _finish(file: FileWriter) -> None:
    file.finish()
    file.close()


def _label(place: LocatedNode) -> str:
    return place.path.rpartition("/")[2] or place.opened.store_path.name
