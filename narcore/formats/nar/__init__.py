"""NAR, the Nix archive: one file system object (a file, a symlink or a directory tree) as a stream of bytes.

The grammar (Nix: src/libutil/archive.cc; manual: protocols/nix-archive)::

    str(s)  = u64le(len) bytes, zero padding to a multiple of 8
    nar     = str("nix-archive-1") node
    node    = str("(") body str(")")
    body    = str("type") str("regular") [ str("executable") str("") ] str("contents") str(bytes)
            | str("type") str("symlink") str("target") str(target)
            | str("type") str("directory") { str("entry") str("(") str("name") str(name) str("node") node str(")") }

The grammar below is the same, with each run of fixed strings merged into one token of `wire`. ``pad`` is the padding of the
preceding string; ``contents``, ``target`` and ``name`` are a u64le length and the bytes::

    nar        = ROOT root
    root       = leaf pad CLOSE | directory
    leaf       = (REGULAR | EXECUTABLE) contents | SYMLINK target
    directory  = DIRECTORY { ENTRY name pad NODE member } CLOSE
    member     = leaf pad CLOSE_ENTRY | directory CLOSE

    ROOT        = "nix-archive-1" "(" "type"        REGULAR     = "regular" "contents"
    ENTRY       = "entry" "(" "name"                EXECUTABLE  = "regular" "executable" "" "contents"
    NODE        = "node" "(" "type"                 SYMLINK     = "symlink" "target"
    CLOSE       = ")"                               DIRECTORY   = "directory"
    CLOSE_ENTRY = ")" ")"

Rules that the grammar doesn't show: the names in a directory strictly increase in byte order, are not empty, ``.`` or
``..``, contain no ``/`` and no NUL, and have at most 255 bytes; targets are not empty, contain no NUL and have at most 4095
bytes; a node is at most 64 directories below the root; a file has less than 2^63 bytes.

`NarParser` turns bytes into the events of `events`, `NarWriter` turns events into bytes. Names and targets are bytes here.
"""

from narcore.formats.nar.events import (
    NEED_DATA,
    Data,
    Directory,
    DirectoryEnd,
    End,
    NarEvent,
    NeedData,
    Regular,
    Symlink,
)
from narcore.formats.nar.parser import NarParser, parse_nar
from narcore.formats.nar.writer import NarWriter, write_nar

__all__ = [
    "NEED_DATA",
    "Data",
    "Directory",
    "DirectoryEnd",
    "End",
    "NarEvent",
    "NarParser",
    "NarWriter",
    "NeedData",
    "Regular",
    "Symlink",
    "parse_nar",
    "write_nar",
]
