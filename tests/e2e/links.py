"""Symbolic links and where they lead, written by hand and thus independent of the programs that are compared with them.

`LINK_TARGETS` has the links of the tree ``links``, `LINKS` has the outcome of each of them, and `ONE_LINKS` has the store paths
that are themselves a symbolic link.
"""

from typing import NamedTuple

from tests.builders import hash_part

STORE_DIR = "/nix/store"
HELLO = "hello-2.12"
LINKS_NAME = "links-1.0"


def base_name(name: str) -> str:
    """Return the base name of the store path of a tree that is not content-addressed."""
    return f"{hash_part(name)}-{name}"


def store_path(name: str) -> str:
    """Return the store path of a tree that is not content-addressed."""
    return f"{STORE_DIR}/{base_name(name)}"


class Inside(NamedTuple):
    """The link leads to a node of the same tree; the path of a directory ends in a slash."""

    path: bytes


class Elsewhere(NamedTuple):
    """The link leads to ``path`` (absolute) in another store path."""

    path: str


class Nowhere(NamedTuple):
    """The link leads to nothing that can be served: the response is a 404 that names ``target``."""

    target: bytes


Outcome = Inside | Elsewhere | Nowhere

_SELF = store_path(LINKS_NAME)
_HELLO = store_path(HELLO)

LINK_TARGETS: dict[bytes, bytes] = {
    b"relative": b"file.txt",
    b"dot-slash": b"./file.txt",
    b"sub/up": b"../file.txt",
    b"chain-1": b"chain-2",
    b"chain-2": b"sub/chain-3",
    b"sub/chain-3": b"../file.txt",
    b"to-exe": b"bin/tool",
    b"to-dir": b"sub",
    b"to-dir-slash": b"sub/",
    b"sub/to-parent": b"..",
    b"to-root": b".",
    b"to-root-2": b"sub/..",
    b"through": b"to-dir/inner.txt",
    b"through-twice": b"to-dir/to-parent/to-dir/inner.txt",
    b"up-out-of-link": b"to-deep/../inner-2.txt",  # .. is the parent of the link's target, not of the link
    b"to-deep": b"sub/deep/deeper",
    b"slashes": b"sub//./inner.txt",
    b"self": f"{_SELF}/file.txt".encode(),
    b"self-dir": f"{_SELF}/sub".encode(),
    b"self-root": _SELF.encode(),
    b"self-through": f"{_SELF}/to-dir/up".encode(),
    b"out-and-in": f"../{base_name(LINKS_NAME)}/file.txt".encode(),
    b"other": f"{_HELLO}/bin/hello".encode(),
    b"other-link": f"{_HELLO}/bin/hi".encode(),  # a link in the other path; it is not followed from here
    b"other-dir": f"{_HELLO}/share".encode(),
    b"other-root": _HELLO.encode(),
    b"other-dots": f"{_HELLO}/share/../bin/hello".encode(),
    b"other-relative": f"../{base_name(HELLO)}/bin/hello".encode(),
    b"sub/other-relative": f"../../{base_name(HELLO)}/bin/hello".encode(),
    b"chain-other": b"other",
    b"not-there": f"{STORE_DIR}/{hash_part('nothing')}-nothing/x".encode(),  # in no cache, which the link does not show
    b"dangling": b"nowhere",
    b"dangling-deep": b"sub/none/x",
    b"dangling-self": f"{_SELF}/nowhere".encode(),
    b"chain-dangling": b"dangling",
    b"behind-file": b"file.txt/x",
    b"loop-1": b"loop-2",
    b"loop-2": b"loop-1",
    b"loop-self": b"loop-self",
    b"loop-below": b"loop-below/x",
    b"sub/loop-dir": b"../sub/loop-dir/y",
    b"loop-absolute": f"{_SELF}/loop-absolute".encode(),
    b"etc": b"/etc/passwd",
    b"etc-relative": b"../../../etc/passwd",
    b"etc-chain": b"etc",
    b"etc-dots": f"{_SELF}/../../../etc/passwd".encode(),
    b"root": b"/",
    b"store-dir": b"/nix/store",
    b"store-dir-relative": b"..",
    b"store-prefix": b"/nix/storefront/x",
    b"store-dot-links": b"/nix/store/.links/x",
}

LINKS: dict[bytes, Outcome] = {
    b"relative": Inside(b"file.txt"),
    b"dot-slash": Inside(b"file.txt"),
    b"sub/up": Inside(b"file.txt"),
    b"chain-1": Inside(b"file.txt"),
    b"chain-2": Inside(b"file.txt"),
    b"sub/chain-3": Inside(b"file.txt"),
    b"to-exe": Inside(b"bin/tool"),
    b"to-dir": Inside(b"sub/"),
    b"to-dir-slash": Inside(b"sub/"),
    b"sub/to-parent": Inside(b""),
    b"to-root": Inside(b""),
    b"to-root-2": Inside(b""),
    b"through": Inside(b"sub/inner.txt"),
    b"through-twice": Inside(b"sub/inner.txt"),
    b"up-out-of-link": Inside(b"sub/deep/inner-2.txt"),
    b"to-deep": Inside(b"sub/deep/deeper/"),
    b"slashes": Inside(b"sub/inner.txt"),
    b"self": Inside(b"file.txt"),
    b"self-dir": Inside(b"sub/"),
    b"self-root": Inside(b""),
    b"self-through": Inside(b"file.txt"),
    b"out-and-in": Inside(b"file.txt"),
    b"other": Elsewhere(f"{_HELLO}/bin/hello"),
    b"other-link": Elsewhere(f"{_HELLO}/bin/hi"),
    b"other-dir": Elsewhere(f"{_HELLO}/share"),
    b"other-root": Elsewhere(_HELLO),
    b"other-relative": Elsewhere(f"{_HELLO}/bin/hello"),
    b"sub/other-relative": Elsewhere(f"{_HELLO}/bin/hello"),
    b"chain-other": Elsewhere(f"{_HELLO}/bin/hello"),
    b"not-there": Elsewhere(f"{STORE_DIR}/{hash_part('nothing')}-nothing/x"),
    b"dangling": Nowhere(b"nowhere"),
    b"dangling-deep": Nowhere(b"sub/none/x"),
    b"dangling-self": Nowhere(f"{_SELF}/nowhere".encode()),
    b"chain-dangling": Nowhere(b"nowhere"),
    b"behind-file": Nowhere(b"file.txt/x"),
    b"loop-1": Nowhere(b"loop-"),
    b"loop-2": Nowhere(b"loop-"),
    b"loop-self": Nowhere(b"loop-self"),
    b"loop-below": Nowhere(b"loop-below/x"),
    b"sub/loop-dir": Nowhere(b"../sub/loop-dir/y"),
    b"loop-absolute": Nowhere(b"loop-absolute"),
    b"etc": Nowhere(b"/etc/passwd"),
    b"etc-relative": Nowhere(b"/etc/passwd"),
    b"etc-chain": Nowhere(b"/etc/passwd"),
    b"etc-dots": Nowhere(b"/etc/passwd"),
    b"root": Nowhere(b"/"),
    b"store-dir": Nowhere(b"/nix/store"),
    b"store-dir-relative": Nowhere(b".."),
    b"store-prefix": Nowhere(b"/nix/storefront/x"),
    b"store-dot-links": Nowhere(b"/nix/store/.links/x"),
    # Paths with a link as a parent.
    b"to-dir/inner.txt": Inside(b"sub/inner.txt"),
    b"to-dir/": Inside(b"sub/"),
    b"to-dir/deep": Inside(b"sub/deep/"),
    b"to-dir/up": Inside(b"file.txt"),
    b"to-dir/to-parent/file.txt": Inside(b"file.txt"),
    b"self-dir/inner.txt": Inside(b"sub/inner.txt"),
    b"other-dir/doc/hello/README": Elsewhere(f"{_HELLO}/share/doc/hello/README"),
    b"other-root/bin/hi": Elsewhere(f"{_HELLO}/bin/hi"),
    b"to-dir/nowhere": Nowhere(b"nowhere"),
    b"relative/x": Nowhere(b"x"),
    b"dangling/x": Nowhere(b"nowhere"),
    b"etc/x": Nowhere(b"/etc/passwd"),
}
"""The outcome of each path of the tree ``links``, except ``other-dots``, which depends on the tree of the other store path."""

ONE_LINKS: dict[str, tuple[str, Outcome]] = {
    "one-link": (f"{_HELLO}/bin/hello", Elsewhere(f"{_HELLO}/bin/hello")),
    "one-link-to-dir": (_HELLO, Elsewhere(_HELLO)),
    "one-link-relative": (f"{base_name(HELLO)}/share", Elsewhere(f"{_HELLO}/share")),
    "one-link-to-link": (store_path("one-link"), Elsewhere(store_path("one-link"))),
    "one-link-out": ("/etc/passwd", Nowhere(b"/etc/passwd")),
    "one-link-up": ("../../etc/passwd", Nowhere(b"/etc/passwd")),
    "one-loop": (store_path("one-loop"), Nowhere(b"one-loop")),
}
"""Store paths that are a symbolic link: target and outcome."""
