"""What a path leads to, against what the kernel makes of the same tree."""

from pathlib import Path

import pytest

from narcore.errors import NoSuchNode, NotADirectory, OutsideStore, PathError, SymlinkLoop
from narcore.formats.listing import NarListing
from narcore.formats.nar.parser import parse_nar
from narcore.formats.resolve import Elsewhere, Found, Inside, resolve
from narcore.formats.storepath import StorePath
from tests.builders import Link, Tree, as_bytes, entries, link, nar

HERE = StorePath.parse("/nix/store/0123456789abcdfghijklmnpqrsvwxyz-here-1.0")
OTHER = "/nix/store/zyxwvsrqpnmlkjihgfdcba9876543210-other-2.0"

TREE: dict[str, Tree] = {
    "bin": {
        "hello": b"hello",
        "up": link("../share/doc"),
        "abs": link(f"{HERE}/share/doc/README"),
        "self": link("self"),
    },
    "share": {"doc": {"README": b"read me", "...": b"dots"}, "doc-link": link("doc"), "root": link("..")},
    "lib": {"x": b"1"},
    "lib64": link("lib"),
    "lib-old": {"x": b"2"},
    "other": link(OTHER),
    "other-bin": link(f"../{OTHER.rpartition('/')[2]}/bin"),
    "home": link(f"../{HERE.base_name}/lib"),
    "around": link(f"../{OTHER.rpartition('/')[2]}/../{HERE.base_name}/lib"),
    "store": link("/nix/store"),
    "etc": link("/etc/passwd"),
    "far": link("../../../../../../etc/passwd"),
    "trash": link("/nix/store/.links/x"),
    "other-dir": link(f"/opt{OTHER}/bin"),
    "up-to-other-dir": link(f"../../../../opt{OTHER}"),
    "no-dir": link(f"/{OTHER.rpartition('/')[2]}"),
    "gone": link("share/nothing"),
    "a": link("b"),
    "b": link("a"),
    "file-as-dir": link("lib/x/y"),
    "dotted": link("./share/./doc//README"),
}


def listing_of(tree: Tree) -> NarListing:
    return NarListing.from_events(parse_nar([nar(tree)], contents=False))


LISTING = listing_of(TREE)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("", Found(LISTING.root, "")),
        ("/", Found(LISTING.root, "")),
        ("//bin///hello/", "bin/hello"),
        ("share/doc/...", "share/doc/..."),
        ("lib/x", "lib/x"),
        ("lib-old/x", "lib-old/x"),
        ("lib64", Inside("lib/")),
        ("lib64/x", Inside("lib/x")),
        ("bin/up", Inside("share/doc/")),
        ("bin/up/README", Inside("share/doc/README")),
        ("bin/abs", Inside("share/doc/README")),
        ("share/doc-link/README", Inside("share/doc/README")),
        ("share/root", Inside("/")),
        ("share/root/share/doc-link/README", Inside("share/doc/README")),
        ("dotted", Inside("share/doc/README")),
        ("home/x", Inside("lib/x")),
        ("around/x", Inside("lib/x")),
        ("other", Elsewhere(OTHER)),
        ("other/bin/x", Elsewhere(f"{OTHER}/bin/x")),
        ("other-bin/x", Elsewhere(f"{OTHER}/bin/x")),
        ("other-dir/x", Elsewhere(f"/opt{OTHER}/bin/x", "/opt/nix/store")),
        ("up-to-other-dir/../x", NoSuchNode),
        ("up-to-other-dir", Elsewhere(f"/opt{OTHER}", "/opt/nix/store")),
        ("no-dir", OutsideStore),
        ("nothing", NoSuchNode),
        ("lib/y", NoSuchNode),
        ("li", NoSuchNode),
        ("bin/../lib/x", NoSuchNode),
        (".", NoSuchNode),
        ("bin/hello/x", NotADirectory),
        ("file-as-dir", NotADirectory),
        ("gone", NoSuchNode),
        ("bin/self", SymlinkLoop),
        ("a", SymlinkLoop),
        ("b/x", SymlinkLoop),
        ("etc", OutsideStore),
        ("far", OutsideStore),
        ("store", OutsideStore),
        ("trash", OutsideStore),
    ],
)
def test_outcomes(path: str, expected: object) -> None:
    if isinstance(expected, type) and issubclass(expected, PathError):
        with pytest.raises(expected):
            resolve(LISTING, HERE, path)
        return
    outcome = resolve(LISTING, HERE, path)
    if isinstance(expected, str):
        assert isinstance(outcome, Found)
        assert outcome.path == expected
    else:
        assert outcome == expected


@pytest.mark.parametrize("path", ["gone", "etc", "a", "file-as-dir"])
def test_the_message_names_the_link_and_its_target(path: str) -> None:
    with pytest.raises(PathError, match=r"(gone|etc|a|b|file-as-dir) -> "):
        resolve(LISTING, HERE, path)


def test_a_link_itself_can_be_found() -> None:
    outcome = resolve(LISTING, HERE, "etc", follow_last=False)
    assert isinstance(outcome, Found)
    assert outcome.node.target == "/etc/passwd"
    assert resolve(LISTING, HERE, "share/root/lib64", follow_last=False) == Inside("lib64")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (OTHER, Elsewhere(OTHER)),
        (f"{OTHER.rpartition('/')[2]}/bin", Elsewhere(f"{OTHER}/bin")),
        ("/bin/sh", OutsideStore),
        (HERE.base_name, SymlinkLoop),
        ("..", OutsideStore),
    ],
)
def test_a_store_path_that_is_a_link(target: str, expected: object) -> None:
    listing = listing_of(link(target))
    if isinstance(expected, type) and issubclass(expected, PathError):
        with pytest.raises(expected):
            resolve(listing, HERE, "")
    else:
        assert resolve(listing, HERE, "") == expected


def test_as_the_kernel_does(tmp_path: Path) -> None:
    """Every path up to two links deep leads where the kernel says, or both refuse."""
    store = tmp_path / "nix/store"
    _plant(TREE, store / HERE.base_name, tmp_path)
    (store / OTHER.rpartition("/")[2] / "bin").mkdir(parents=True)
    names = ["bin", "share", "doc", "lib64", "up", "root", "other", "home", "around", "x", "README", "doc-link", "a"]
    paths = ["/".join(pair) for pair in [(a, b) for a in names for b in names]] + names
    for path in paths:
        try:
            outcome = resolve(LISTING, HERE, path)
        except PathError:
            assert not _leads_into_store(store, path), path
            continue
        if isinstance(outcome, Elsewhere):
            assert outcome.path.startswith(OTHER), path
            continue
        there = store / HERE.base_name / outcome.path.strip("/")
        assert there.samefile(store / HERE.base_name / path), path


def _plant(tree: Tree, where: Path, root: Path) -> None:
    """Make the tree. The kernel has no other root here, so what is absolute is made to begin at ``root``."""
    match tree:
        case bytes():
            where.write_bytes(tree)
        case Link(target):
            text = target.decode()
            where.symlink_to(f"{root}{text}" if text.startswith("/") else text)
        case _:
            where.mkdir(parents=True)
            for name, child in entries(tree):
                _plant(child, where / as_bytes(name).decode(), root)


def _leads_into_store(store: Path, path: str) -> bool:
    try:
        real = (store / HERE.base_name / path).resolve(strict=True)
    except (OSError, RuntimeError):  # it dangles, or is a loop
        return False
    return real.is_relative_to(store) and real != store
