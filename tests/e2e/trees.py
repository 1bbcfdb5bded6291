"""The source trees of the binary caches: the expected result of every comparison.

`make_trees` writes the trees below a directory, one for each name in `SPECS`. The module `links` lists by hand where links lead;
`walk` reads everything else from the tree itself.
"""

import gzip
import os
import random
import shutil
import struct
import sysconfig
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.e2e.links import HELLO, LINK_TARGETS, LINKS_NAME, ONE_LINKS

MIB = 1024 * 1024
BIG_SIZE = 20 * MIB
LATER_SIZE = 16 * MIB  # so large that a multi-block xz has it in other blocks than the first file


class Entry(NamedTuple):
    """One node of a source tree. ``path`` is relative, b"" for the root; ``source`` is its path on disk."""

    path: bytes
    kind: str  # regular, directory or symlink, as in a listing
    source: Path
    executable: bool
    target: bytes


@dataclass(frozen=True, slots=True)
class Spec:
    """How to make a tree. ``make`` writes it to a path that does not exist yet; ``references`` names the trees it links to."""

    make: Callable[[Path], None]
    references: tuple[str, ...] = ()
    content_addressed: bool = False  # Nix computes the store path; otherwise it is `links.store_path`, known in advance
    slow: bool = False  # slow to compress and compare: several megabytes


def walk(root: Path) -> Iterator[Entry]:
    """Yield every node of a source tree in byte order, directories before their entries."""
    yield from _walk(root, b"")


def _walk(source: Path, path: bytes) -> Iterator[Entry]:
    if source.is_symlink():
        target = os.readlink(source)  # noqa: PTH115  (Path.readlink drops "./" and "//")
        yield Entry(path, "symlink", source, False, os.fsencode(target))
    elif source.is_dir():
        yield Entry(path, "directory", source, False, b"")
        for name in sorted(os.fsencode(child.name) for child in source.iterdir()):
            yield from _walk(source / os.fsdecode(name), path + b"/" + name if path else name)
    else:
        yield Entry(path, "regular", source, bool(source.stat().st_mode & 0o100), b"")


def write(root: Path, files: Mapping[str, bytes] | Mapping[bytes, bytes], executable: tuple[str, ...] = ()) -> None:
    """Write files below ``root``, and create their directories."""
    for name, data in files.items():
        path = root / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    for script in executable:
        (root / script).chmod(0o755)


def symlinks(root: Path, links: Mapping[bytes, bytes]) -> None:
    """Make symbolic links below ``root``."""
    for name, target in links.items():
        path = root / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(os.fsdecode(target))


# ---- an ordinary package

MANUAL = gzip.compress(b".TH HELLO 1\n.SH NAME\nhello\n", mtime=0)
SCRIPT = b"#!/bin/sh\necho hello\n"


def _hello(root: Path) -> None:
    write(
        root,
        {
            "bin/hello": SCRIPT,
            "lib/libhello.so.1.2": b"\x7fELF\x02\x01\x01" + bytes(range(256)) * 40,
            "share/doc/hello/README": b"Hello.\n" * 300,
            "share/man/man1/hello.1.gz": MANUAL,
        },
        executable=("bin/hello", "lib/libhello.so.1.2"),
    )
    symlinks(
        root, {b"bin/hi": b"hello", b"lib/libhello.so.1": b"libhello.so.1.2", b"lib/libhello.so": b"libhello.so.1"}
    )


# ---- links: `links` has their targets and outcomes


def _links(root: Path) -> None:
    files = {
        "file.txt": b"the file\n",
        "bin/tool": SCRIPT,
        "sub/inner.txt": b"inner\n",
        "sub/deep/inner-2.txt": b"inner 2\n",
        "sub/deep/deeper/inner-3.txt": b"inner 3\n",
    }
    write(root, files, executable=("bin/tool",))
    symlinks(root, LINK_TARGETS)


# ---- names

NAMES_NAME = "names-0.1"
ODD_NAMES = (
    b"sp ace", b" leading", b"trailing ", b"quote\"d'", b"<b>bold", b"<script>alert(1)<", b"&amp;", b"&lt;b",
    b"%41", b"A", b"%", b"%zz", b"%2e%2e", b"%2F", b"%FF", b"what?", b"?", b"a=b&c=d", b"hash#", b"#", b"pl+us",
    b"+", b"semi;colon", b"co,mma", b"co:lon", b"at@", b"*", b"[bracket]", b"{brace}", b"~tilde", b"$dollar",
    b"`tick`", b"|", b"back\\slash", b"new\nline", b"\r\nX-Injected: 1", b"tab\t", b"\x01\x7f", b"\xc2\x85",
    b"-dash", b".hidden", b"...", b"..x", b")", b"entry", b"type", b"caf\xc3\xa9", b"cafe\xcc\x81", b"caf\xe9",
    b"\xff\xfe", b"\xff\xfe.html", b"\x80", b"\xed\xa0\x80", b"\xc3(", b"\xe2\x80\xaertl", b"\xf0\x9f\x90\x8d.py",
    b"a" * 255, b"index.htm", b"favicon.ico", b"robots.txt", b"narinfo", b"a.ls",
)  # fmt: skip
"""Names of files. The contents of each file include its name, so that a test detects a mix-up."""

ODD_DIRECTORY = b"d %41?#\xff"
NAME_LINKS = {
    b"to-space": b"sp ace",
    b"to-percent": b"%41",
    b"to-query": b"what?",
    b"to-hash": b"hash#",
    b"to-plus": b"pl+us",
    b"to-raw": b"\xff\xfe",
    b"to-injected": b"\r\nX-Injected: 1",
    b"to-backslash": b"back\\slash",
    b"to-directory": ODD_DIRECTORY,
    b"link \xfe": b"caf\xe9",
    b"to-deep": ODD_DIRECTORY + b"/in\xffside",
}
NAME_LINKS_NOWHERE = {b"dangling-raw": b"none \xff\r\nX-Injected: 1\n<b>"}


def _names(root: Path) -> None:
    write(root, {name: b"contents of " + name for name in ODD_NAMES})
    write(root, {ODD_DIRECTORY + b"/in\xffside": b"inside", ODD_DIRECTORY + b"/sp ace/+": b"deeper"})
    symlinks(root, NAME_LINKS | NAME_LINKS_NOWHERE)


SIBLINGS_NAME = "siblings"
SIBLINGS = (b"lib", b"lib64", b"lib-old", b"lib.d", b"lib+", b"lib ", b"lib!", b"lib0", b"lib\xff", b"libs", b"li")


def _siblings(root: Path) -> None:
    for name in SIBLINGS:
        write(
            root, {name + b"/same.txt": b"in " + name, name + b"/only-" + name: name, name + b"/sub/x": b"x of " + name}
        )
    write(root, {"lib.so": b"a file between them", "lib-": b"another", "include/lib/same.txt": b"in include/lib"})


# ---- contents


def png() -> bytes:
    """Return a PNG of one pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")


TYPES_NAME = "types"
TYPES: dict[str, tuple[bytes, str]] = {
    "doc.txt": (b"text", "text/plain"),
    "page.html": (b"<p>page", "text/html"),
    "UPPER.HTML": (b"<p>page", "text/html"),
    "style.css": (b"p{}", "text/css"),
    "app.js": (b"1", "text/javascript"),
    "app.mjs": (b"1", "text/javascript"),
    "data.json": (b"{}", "application/json"),
    "image.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"),
    "image.png": (png(), "image/png"),
    "module.wasm": (b"\0asm\1\0\0\0", "application/wasm"),
    "foo.1.gz": (MANUAL, "application/gzip"),
    "archive.tar.gz": (MANUAL, "application/gzip"),
    "paper.pdf": (b"%PDF-1.4", "application/pdf"),
    "text": (b"#!/bin/sh\necho\n", "text/plain; charset=utf-8"),
    "text-utf8": ("Grüße, κόσμε\n".encode(), "text/plain; charset=utf-8"),
    "text-cut": (
        b"x" * 1023 + "é".encode() * 3000,
        "text/plain; charset=utf-8",
    ),  # sniffing may end inside a multi-byte character
    "binary": (b"\x7fELF\x02\x01\x01\0\0\0", "application/octet-stream"),
    "latin1": (b"caf\xe9 au lait", "application/octet-stream"),
    "nul": (b"text, then a nul\0", "application/octet-stream"),
}
"""Contents and media type of the files of the tree ``types``. A response may add parameters to a type without parameters."""


def _types(root: Path) -> None:
    write(root, {name: data for name, (data, _) in TYPES.items()})


WEBSITE_NAME = "website"


def _website(root: Path) -> None:
    index = b"<!doctype html><link rel=stylesheet href=style.css><img src='img/logo.png'><a href='docs/'>docs</a>"
    write(
        root,
        {
            "index.html": index,
            "style.css": b"p { color: teal }",
            "img/logo.png": png(),
            "docs/index.html": b"<!doctype html><a href='../'>up</a>",
            "docs/other.html": b"<!doctype html>other",
            "plain/readme": b"no index here",
            "index-is-directory/index.html/x": b"x",
        },
    )
    symlinks(root, {b"index-is-link/index.html": b"../index.html", b"index-dangles/index.html": b"nowhere"})


EMPTIES_NAME = "empties"


def _empties(root: Path) -> None:
    write(root, dict.fromkeys(("file", "file.html", "script", "a/b/file"), b""), executable=("script",))
    for name in ("dir", "a/b/c"):
        (root / name).mkdir()


DEEP_NAME = "deep"
DEEP_LEVELS = 60  # the limit is 64, including the file name


def _deep(root: Path) -> None:
    path = root.joinpath(*["d"] * DEEP_LEVELS)
    path.mkdir(parents=True)
    (path / "file").write_bytes(b"down here")


BIG_NAME = "big"


def half_compressible(size: int, seed: int) -> bytes:
    """Return ``size`` bytes: blocks of 512 random bytes alternate with blocks of 512 bytes of text."""
    generator = random.Random(seed)
    blocks = (generator.randbytes(512) + b"%0511d\n" % number for number in range(size // 1024))
    return b"".join(blocks)


def _big(root: Path) -> None:
    write(
        root,
        {
            "a-first.txt": b"in front of it\n",
            "data.bin": half_compressible(BIG_SIZE, 1),
            "later.bin": half_compressible(LATER_SIZE, 2),
            "z-last.txt": b"behind it\n",
        },
    )


# Left out of the standard library: installed packages, files that differ between runs, and many more of the same kind.
_NOT_COPIED = shutil.ignore_patterns(
    "__pycache__", "site-packages", "dist-packages", "test", "tests", "lib2to3", "idlelib", "ensurepip", "turtledemo",
    "pydoc_data", "config-*",
)  # fmt: skip


def _stdlib(root: Path) -> None:
    shutil.copytree(sysconfig.get_path("stdlib"), root, symlinks=True, ignore=_NOT_COPIED)


# ---- store paths that are not directories


def _one_file(root: Path) -> None:
    root.write_bytes(b"a store path that is one file\n" * 50)


def _one_script(root: Path) -> None:
    root.write_bytes(SCRIPT)
    root.chmod(0o755)


def _symlink_to(target: str) -> Callable[[Path], None]:
    return lambda root: root.symlink_to(target)


def _odd_name(root: Path) -> None:
    write(root, {"bin/x": b"found", "sub/y": b"found as well"})


ODD_NAME = "odd+name?x=1.2_3"
ONE_FILE_NAME = "one-file.txt"
ONE_SCRIPT_NAME = "one-script.sh"
STDLIB_NAME = "python-stdlib"

SPECS: dict[str, Spec] = {
    HELLO: Spec(_hello),
    LINKS_NAME: Spec(_links, references=(HELLO, LINKS_NAME)),
    NAMES_NAME: Spec(_names),
    SIBLINGS_NAME: Spec(_siblings),
    TYPES_NAME: Spec(_types),
    WEBSITE_NAME: Spec(_website),
    EMPTIES_NAME: Spec(_empties, content_addressed=True),
    "empty-directory": Spec(lambda root: root.mkdir()),
    DEEP_NAME: Spec(_deep),
    BIG_NAME: Spec(_big, slow=True),
    STDLIB_NAME: Spec(_stdlib, content_addressed=True, slow=True),
    ODD_NAME: Spec(_odd_name),
    ONE_FILE_NAME: Spec(_one_file, content_addressed=True),
    ONE_SCRIPT_NAME: Spec(_one_script),
} | {name: Spec(_symlink_to(target), references=(HELLO,)) for name, (target, _) in ONE_LINKS.items()}
"""All trees. A tree comes after the trees that it refers to."""


def make_trees(directory: Path) -> None:
    """Write every tree to ``directory``, under its name."""
    for name, spec in SPECS.items():
        spec.make(directory / name)
