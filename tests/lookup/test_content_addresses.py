"""Content addresses, compared with a real Nix: the paths that it computes, the narinfos that it accepts, the NARs that it makes."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from narcore.errors import HashMismatch
from narcore.formats.contentaddress import ContentAddress, contents_unproved, is_address_of, refers_to_itself
from narcore.formats.narinfo import NarInfo
from narcore.formats.nixhash import NixHash
from narcore.formats.storepath import StorePath
from narcore.streams.contentcheck import addressed
from tests.builders import Tree, exe, hash_part, link, nar
from tests.realnix import RealNix

TEXTS = 'let a = builtins.toFile "a" "1"; c = builtins.toFile "c" "3"; in builtins.toFile "text" "${c} ${a} ${c}"'
SELFISH, FRIEND = f"{hash_part('selfish')}-selfish", f"{hash_part('friend')}-friend"

# For each path of the fixture, by name: how its CA begins, and whether its contents must be checked in addition to the NarHash.
KINDS = {
    "tree": ("fixed:r:sha256:", False),
    "r-md5": ("fixed:r:md5:", True),
    "r-sha1": ("fixed:r:sha1:", True),
    "r-sha512": ("fixed:r:sha512:", True),
    "flat": ("fixed:sha256:", True),
    "md5": ("fixed:md5:", True),
    "sha1": ("fixed:sha1:", True),
    "sha512": ("fixed:sha512:", True),
    "a": ("text:sha256:", True),  # a text without references
    "text": ("text:sha256:", True),  # a text with two references
    "friend": ("fixed:r:sha256:", False),
    "selfish": ("fixed:r:sha256:", True),  # refers to itself and to "friend"
}


@dataclass(frozen=True)
class Addressed:
    """Narinfos with a CA, and their NARs, by the name of the store path."""

    nix: RealNix
    infos: dict[str, NarInfo]

    def nar(self, name: str) -> bytes:
        return (self.nix.cache / self.infos[name].url).read_bytes()

    def self_reference(self, name: str) -> str:
        info = self.infos[name]
        return info.store_path.hash_part if refers_to_itself(info) else ""


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Addressed:
    """Unsigned paths of each kind, made in each way that Nix supports."""
    nix = RealNix.start(tmp_path_factory.mktemp("addressed"))
    nix.run("nix", "store", "add-path", "--name", "tree", _tree(nix.root))
    nix.run("nix", "store", "add-file", "--name", "flat", _file(nix.root / "file"))
    nix.run("nix-instantiate", "--eval", "--read-write-mode", "--expr", TEXTS)
    for algorithm in ("md5", "sha1", "sha512"):
        nix.run("nix-store", "--add-fixed", algorithm, _file(nix.root / algorithm))
        nix.run("nix-store", "--add-fixed", "--recursive", algorithm, _file(nix.root / f"r-{algorithm}"))
    nix.import_path(FRIEND, nar(b"a friend"), ())
    nix.import_path(SELFISH, nar(_selfish_tree()), (SELFISH, FRIEND))
    nix.run("nix", "store", "make-content-addressed", f"/nix/store/{SELFISH}")
    nix.copy_all("compression=none")
    infos = [NarInfo.parse(file.read_bytes()) for file in nix.cache.glob("*.narinfo")]
    return Addressed(nix, {info.store_path.name: info for info in infos if info.ca})


def _file(path: Path) -> Path:
    path.write_bytes(b"contents\n" * 1000)
    return path


def _tree(root: Path) -> Path:
    (root / "tree").mkdir()
    _file(root / "tree" / "x")
    return root / "tree"


def _selfish_tree() -> Tree:
    """Return a tree that refers to itself many times, in contents at any offset and in a link, and contains many zeros."""
    own, friend = f"/nix/store/{SELFISH}".encode(), f"/nix/store/{FRIEND}".encode()
    programs: Tree = {"x": exe(b"#!" + own + b"/bin/x\n" + own[11:] * 50)}
    contents: dict[str, Tree] = {
        "bin": programs,
        "link": link(own + b"/bin/x"),
        "friend": link(friend),
        "zeros": bytes(100),
        "last": SELFISH[:32].encode() * 3 + SELFISH[:31].encode(),
    }
    return contents


@pytest.mark.parametrize("name", KINDS)
def test_store_path_is_the_one_that_nix_computes(paths: Addressed, name: str) -> None:
    info = paths.infos[name]
    assert info.ca is not None
    address = ContentAddress.parse(info.ca)
    others = [reference for reference in info.references if reference != info.store_path.base_name]
    assert address.store_path(name, others, self_reference=len(others) < len(info.references)) == info.store_path
    assert str(address) == info.ca
    assert info.ca.startswith(KINDS[name][0])
    assert is_address_of(info)
    assert contents_unproved(info) is KINDS[name][1]


def test_fixture_has_every_case(paths: Addressed) -> None:
    assert paths.infos.keys() == {*KINDS, "c"}
    assert len(paths.infos["text"].references) == 2
    assert len(paths.infos["selfish"].references) == 2
    assert paths.self_reference("selfish")
    assert not any(paths.self_reference(name) for name in KINDS if name != "selfish")


def test_store_path_depends_on_the_store_dir(paths: Addressed) -> None:
    store = f"local?root={paths.nix.root}/gnu&store=/gnu/store"
    path = paths.nix.run("nix", "store", "add-path", "--store", store, "--name", "tree", paths.nix.root / "tree").stdout
    address = ContentAddress("nar", paths.infos["tree"].nar_hash)
    assert str(address.store_path("tree", store_dir="/gnu/store")) == path.strip()


Tamper = Callable[[NarInfo], NarInfo]


def _other_hash(info: NarInfo) -> NarInfo:
    address = ContentAddress.parse(info.ca or "")
    digest = bytes([address.hash.digest[0] ^ 1]) + address.hash.digest[1:]
    return replace(info, ca=str(ContentAddress(address.method, NixHash(address.hash.algorithm, digest))))


def _other_method(info: NarInfo) -> NarInfo:
    address = ContentAddress.parse(info.ca or "")
    return replace(info, ca=str(ContentAddress("flat" if address.method == "nar" else "nar", address.hash)))


def _renamed(info: NarInfo, **part: str) -> NarInfo:
    """Return the narinfo with another store path, also in its reference to itself, so that nothing else changes."""
    path = replace(info.store_path, **part)
    references = [path.base_name if old == info.store_path.base_name else old for old in info.references]
    return replace(info, store_path=path, references=tuple(references))


TAMPERED: dict[str, Tamper] = {
    "another name": lambda info: _renamed(info, name=f"{info.store_path.name}-1"),
    "another hash part": lambda info: _renamed(info, hash_part=hash_part("x")),
    "another hash in the CA": _other_hash,
    "another method in the CA": _other_method,
    "CA without its end": lambda info: replace(info, ca=(info.ca or "")[:-1]),
    "no CA": lambda info: replace(info, ca=None),
}
REFERENCES_TAMPERED: dict[str, Tamper] = {
    "an additional reference": lambda info: replace(info, references=(*info.references, f"{hash_part('x')}-x")),
    "a missing reference": lambda info: replace(info, references=info.references[1:]),
    "no references": lambda info: replace(info, references=()),
    "another reference": lambda info: replace(info, references=(f"{hash_part('x')}-x", *info.references[1:])),
}


@pytest.mark.parametrize("tamper", TAMPERED.values(), ids=TAMPERED)
@pytest.mark.parametrize("name", KINDS)
def test_tampered_narinfo_does_not_match_its_address(paths: Addressed, name: str, tamper: Tamper) -> None:
    assert not is_address_of(tamper(paths.infos[name]))


@pytest.mark.parametrize("tamper", REFERENCES_TAMPERED.values(), ids=REFERENCES_TAMPERED)
@pytest.mark.parametrize("name", ["text", "selfish"])
def test_address_depends_on_the_references(paths: Addressed, name: str, tamper: Tamper) -> None:
    assert not is_address_of(tamper(paths.infos[name]))


@pytest.mark.parametrize("name", KINDS)
def test_impossible_references_do_not_match_the_address(paths: Addressed, name: str) -> None:
    info = paths.infos[name]
    assert not is_address_of(REFERENCES_TAMPERED["an additional reference"](info))
    if not paths.self_reference(name):
        assert not is_address_of(replace(info, references=(*info.references, info.store_path.base_name)))


def test_order_of_references_does_not_matter(paths: Addressed) -> None:
    for name in ("text", "selfish"):
        info = paths.infos[name]
        assert is_address_of(replace(info, references=info.references[::-1]))
        assert is_address_of(replace(info, references=info.references * 2))


def test_nar_hash_must_match_if_it_is_part_of_the_address(paths: Addressed) -> None:
    for name, (_, unproved) in KINDS.items():
        other = replace(paths.infos[name], nar_hash=NixHash("sha256", bytes(32)))
        assert is_address_of(other) is unproved  # then the contents must be checked


# Cases after which Nix 2.8 continues with the next path. It stops at a CA that it can't parse, and aborts if a path has
# references that its kind of CA can't have.
FOR_NIX: dict[str, tuple[Tamper, list[str]]] = {
    "nothing changed": (lambda info: info, [*KINDS]),
    "another name": (TAMPERED["another name"], [*KINDS]),
    "another hash part": (TAMPERED["another hash part"], ["selfish"]),
    "another hash in the CA": (_other_hash, [*KINDS]),
    "another method in the CA": (_other_method, [name for name in KINDS if name not in ("text", "selfish")]),
    "no CA": (TAMPERED["no CA"], [*KINDS]),
} | {kind: (tamper, ["text", "selfish", "friend"]) for kind, tamper in REFERENCES_TAMPERED.items()}


@pytest.mark.parametrize("kind", FOR_NIX)
def test_real_nix_trusts_the_same_narinfos(paths: Addressed, tmp_path: Path, kind: str) -> None:
    """In a cache of unsigned narinfos, all changed in the same way, Nix reports the same paths as untrusted as nar-serve."""
    tamper, names = FOR_NIX[kind]
    infos = [tamper(paths.infos[name]) for name in names]
    (tmp_path / "nix-cache-info").write_text("StoreDir: /nix/store\n")
    for info in infos:
        (tmp_path / f"{info.store_path.hash_part}.narinfo").write_text(info.to_text())
    verify = ("nix", "store", "verify", "--all", "--store", f"file://{tmp_path}", "--no-contents", "--sigs-needed", "1")
    output = paths.nix.run(*verify, check=False).stderr
    untrusted = [info for info in infos if f"path '{info.store_path}' is untrusted" in output]
    assert untrusted == [info for info in infos if not is_address_of(info)]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("size", [1, 7, 4096, 1 << 20])
def test_nars_made_by_nix_pass_the_check_of_contents(paths: Addressed, name: str, size: int) -> None:
    archive, info = paths.nar(name), paths.infos[name]
    address = ContentAddress.parse(info.ca or "")
    chunks = [archive[start : start + size] for start in range(0, len(archive), size)]
    assert b"".join(addressed(chunks, address, self_reference=paths.self_reference(name))) == archive


@pytest.mark.parametrize("name", KINDS)
def test_other_contents_fail_the_check(paths: Addressed, name: str) -> None:
    archive, info = paths.nar(name), paths.infos[name]
    forged = nar({"x": b"forged"} if info.ca and info.ca.startswith("fixed:r:") else b"forged")
    assert forged != archive
    with pytest.raises(HashMismatch):
        list(addressed([forged], ContentAddress.parse(info.ca or ""), self_reference=paths.self_reference(name)))


def test_zeros_do_not_count_as_self_references(paths: Addressed) -> None:
    archive, own = paths.nar("selfish"), paths.self_reference("selfish").encode()
    address = ContentAddress.parse(paths.infos["selfish"].ca or "")
    assert archive.count(own) > 50
    for forged in (archive.replace(own, bytes(32), 1), archive.replace(bytes(32), own, 1)):
        assert forged != archive
        with pytest.raises(HashMismatch):
            list(addressed([forged], address, self_reference=own.decode()))


def test_original_of_a_content_addressed_copy_has_no_valid_address(paths: Addressed) -> None:
    """The same NAR under its original path is not content-addressed, whatever its CA says."""
    info = paths.infos["selfish"]
    original = replace(info, store_path=StorePath.from_base_name(SELFISH), references=(SELFISH, FRIEND))
    assert not is_address_of(original)
