"""Parses ``.ls`` files: turns the JSON into the events of the NAR that it describes.

``{"version":1,"root":node}``, where a node is one of these (Nix: src/libutil/nar-listing.cc); other fields are ignored::

    {"type":"regular","size":N,"executable":bool?,"narOffset":N?}
    {"type":"directory","entries":{name:node}}
    {"type":"symlink","target":s}

Bytes that are not UTF-8 may appear unescaped, as Nix 2.8 writes them, or escaped as ``\\udc80`` to ``\\udcff``.
"""

import json
from collections.abc import Iterator
from operator import itemgetter

from narcore.errors import ListingError
from narcore.formats.names import to_bytes, to_text
from narcore.formats.nar import wire
from narcore.formats.nar.events import Directory, DirectoryEnd, NarEvent, Regular, Symlink


def events(data: bytes) -> Iterator[NarEvent]:
    """Yield the events of the NAR in NAR order, without Data and End.

    ``nar_offset`` is the value in the file, or 0. Raises ListingError if the file breaks the format, is not complete, or
    describes a tree that a NAR can't contain.
    """
    return _events(_root(data))


def memory_needed(data: bytes) -> int:
    """Return an upper bound, in bytes, on the memory for reading the file. It is estimated from counts of characters.

    The factors were measured with all kinds of JSON. A well-formed listing takes half of this bound. Without this check, a file
    of 32 MiB could take 900 MiB: ``{},{},{},...``
    """
    a_character = 2 if data.isascii() and b"\\" not in data else 12  # one non-Latin-1 character widens the whole string
    counts = (250, b"{"), (80, b"["), (60, b","), (30, b'"')
    return a_character * len(data) + sum(size * data.count(mark) for size, mark in counts)


def _root(data: bytes) -> object:
    """The root node of an ``.ls`` file as parsed JSON."""
    try:
        listing = json.loads(to_text(data))
    except (ValueError, RecursionError) as error:  # ValueError also for integers of thousands of digits
        raise ListingError("invalid JSON") from error
    if not isinstance(listing, dict):
        raise ListingError("not a JSON object")
    version = listing.get("version")
    if type(version) is not int or version != 1:
        raise ListingError("not version 1", where="field version")
    return listing.get("root")


def _events(root: object) -> Iterator[NarEvent]:
    # Not recursive, because the author of the file decides how deep it is nested.
    pending: list[Iterator[tuple[bytes, object]]] = [iter([(b"", root)])]
    while pending:
        for name, node in pending[-1]:
            if not isinstance(node, dict):
                raise ListingError("a node is not a JSON object", where=shown(name))
            kind = node.get("type")
            if kind == "regular":
                yield _regular(name, node)
            elif kind == "symlink":
                yield Symlink(name, _checked_target(name, node.get("target")))
            elif kind == "directory":
                yield Directory(name)
                pending.append(_entries(name, node.get("entries"), len(pending)))
                break
            else:
                raise ListingError("missing or unknown type", where=shown(name))
        else:
            pending.pop()
            if pending:
                yield DirectoryEnd()


def _regular(name: bytes, node: dict[str, object]) -> Regular:
    size, executable, nar_offset = node.get("size"), node.get("executable", False), node.get("narOffset")
    if type(size) is not int or not 0 <= size <= wire.SIZE_MAX:  # isinstance would also accept True, which is an int
        raise ListingError("missing or invalid size", where=shown(name))
    if not isinstance(executable, bool):
        raise ListingError("executable is not true or false", where=shown(name))
    if nar_offset is None:
        return Regular(name, executable, size)
    if type(nar_offset) is not int or nar_offset <= 0:
        raise ListingError("invalid narOffset", where=shown(name))
    return Regular(name, executable, size, nar_offset)


def _checked_target(name: bytes, target: object) -> bytes:
    raw = _encoded(target, name)
    if fault := wire.target_fault(raw):
        raise ListingError(fault, where=shown(name))
    return raw


def _entries(name: bytes, entries: object, depth: int) -> Iterator[tuple[bytes, object]]:
    """Return the entries of the directory ``name``, checked and sorted, with names as bytes. ``depth`` is the entries' depth."""
    if not isinstance(entries, dict):
        raise ListingError("a directory has no entries field: the listing is not complete", where=shown(name))
    if entries and depth > wire.DEPTH_MAX:
        raise ListingError(f"nested deeper than {wire.DEPTH_MAX}", where=shown(name))
    members = sorted(((_encoded(key, name), node) for key, node in entries.items()), key=itemgetter(0))
    previous = b""
    for key, _ in members:
        if fault := wire.name_fault(key) or wire.order_fault(key, previous):
            raise ListingError(fault, where=shown(name))
        previous = key
    return iter(members)


def _encoded(text: object, name: bytes) -> bytes:
    if not isinstance(text, str):
        raise ListingError("missing or invalid target", where=shown(name))
    try:
        return to_bytes(text)
    except UnicodeEncodeError as error:  # an escaped surrogate outside of \udc80 to \udcff
        raise ListingError("the text can't be encoded as bytes", where=shown(name)) from error


def shown(name: bytes) -> str:
    """Return the name of a node for a message. Only the name is known here, not the full path."""
    return f"entry {name!r}" if name else "root"
