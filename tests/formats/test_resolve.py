"""Resolution of paths, also compared with the kernel's resolution in the same tree."""

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
def test_paths_are_resolved(path: str, expected: object) -> None:
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
def test_the_error_names_the_link_and_its_target(path: str) -> None:
    with pytest.raises(PathError, match=r"(gone|etc|a|b|file-as-dir) -> "):
        resolve(LISTING, HERE, path)


@pytest.mark.parametrize(
    ("path", "dangling"),
    [
        ("gone", "gone -> share/nothing"),
        ("gone/x", "gone -> share/nothing"),
        ("file-as-dir", "file-as-dir -> lib/x/y"),
        ("lib64/nothing", ""),  # the link leads to lib, which has no such entry
        ("bin/up/nothing", ""),
        ("lib64/x/y", ""),
        ("share/root/gone", "gone -> share/nothing"),
        ("bin/up/../nothing", ""),
    ],
)
def test_only_a_link_whose_target_is_missing_is_said_to_dangle(path: str, dangling: str) -> None:
    with pytest.raises(PathError) as failure:
        resolve(LISTING, HERE, path)
    assert ("dangles" in str(failure.value)) == bool(dangling)
    assert dangling in str(failure.value)


def test_the_last_link_is_not_followed_on_request() -> None:
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
def test_a_store_path_can_be_a_link(target: str, expected: object) -> None:
    listing = listing_of(link(target))
    if isinstance(expected, type) and issubclass(expected, PathError):
        with pytest.raises(expected):
            resolve(listing, HERE, "")
    else:
        assert resolve(listing, HERE, "") == expected


def test_paths_are_resolved_as_by_the_kernel(tmp_path: Path) -> None:
    """Every path of up to two segments has the kernel's result, or both refuse it."""
    store = tmp_path / "nix/store"
    _create(TREE, store / HERE.base_name, tmp_path)
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


def _create(tree: Tree, where: Path, root: Path) -> None:
    """Create the tree. Absolute link targets are placed below ``root``, because the kernel's root can't be changed here."""
    match tree:
        case bytes():
            where.write_bytes(tree)
        case Link(target):
            text = target.decode()
            where.symlink_to(f"{root}{text}" if text.startswith("/") else text)
        case _:
            where.mkdir(parents=True)
            for name, child in entries(tree):
                _create(child, where / as_bytes(name).decode(), root)


def _leads_into_store(store: Path, path: str) -> bool:
    try:
        real = (store / HERE.base_name / path).resolve(strict=True)
    except (OSError, RuntimeError):  # a dangling link or a loop
        return False
    return real.is_relative_to(store) and real != store
