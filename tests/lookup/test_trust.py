"""Forged narinfos are rejected: a cache that a real Nix signed, and changes that an attacker may make to it.

Every forgery, and every harmless change, is also given to a real Nix, which must come to the same result.
"""

from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from narcore.binarycache import BinaryCache
from narcore.cache.narcache import NarCache
from narcore.errors import CompressionError, FormatError, HashMismatch, IntegrityError, NarInfoError, UntrustedSignature
from narcore.formats.contentaddress import ContentAddress
from narcore.formats.narinfo import NarInfo
from narcore.formats.nixhash import NixHash
from narcore.formats.signature import PublicKey, SecretKey, Signature
from narcore.lookup.lookup import Strategy
from narcore.lookup.pathinfo import Trust
from narcore.lookup.substituter import Substituter
from narcore.stores.base import StoreFile
from narcore.stores.memory import MemoryStore
from tests.builders import COMPRESS, Tree, exe, hash_part, link, nar, nar_info
from tests.realnix import KEY_NAME, RealNix

BASE = f"{hash_part('victim')}-victim"
FRIEND, ENEMY = f"{hash_part('friend')}-friend", f"{hash_part('enemy')}-enemy"
CONTENTS = b"the real one\n" * 5000
STRATEGIES: tuple[Strategy, ...] = ("ordered", "parallel")


@dataclass(frozen=True)
class Signed:
    """A cache written by Nix, its key, and its narinfos by the name of the store path."""

    nix: RealNix
    key: PublicKey
    infos: dict[str, NarInfo]
    files: dict[str, bytes]

    @property
    def victim(self) -> NarInfo:
        return self.infos["victim"]

    def with_narinfo(self, data: bytes, name: str = "victim") -> dict[str, bytes]:
        """Return the files of the cache, with another narinfo for the path of that name."""
        return self.files | {narinfo_name(self.infos[name]): data}


class WatchedStore(MemoryStore):
    """Records requests in ``asked``."""

    def __init__(self, files: dict[str, bytes], name: str = "watched") -> None:
        super().__init__(files, f"memory://{name}")
        self.asked: list[str] = []

    def get_file(self, path: str, start: int = 0, stop: int | None = None) -> StoreFile:
        self.asked.append(path)
        return super().get_file(path, start, stop)


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Signed:
    """``victim`` refers to itself, to ``friend`` and to ``enemy``; the others have a CA and no signature."""
    nix = RealNix.start(tmp_path_factory.mktemp("signed"))
    for name in (FRIEND, ENEMY):
        nix.import_path(name, nar(name.encode()), ())
    programs: Tree = {"x": exe(CONTENTS)}
    tree: dict[str, Tree] = {"bin": programs, "friend": link(f"/nix/store/{FRIEND}")}
    nix.import_path(BASE, nar(tree), (BASE, FRIEND, ENEMY))
    nix.sign_all()
    (nix.root / "file").write_bytes(CONTENTS)
    nix.run("nix", "store", "add-path", "--name", "tree", nix.root / "file")
    nix.run("nix", "store", "add-file", "--name", "flat", nix.root / "file")
    (nix.root / "file").chmod(0o755)
    nix.run("nix", "store", "add-file", "--name", "flat-executable", nix.root / "file")
    nix.run("nix-instantiate", "--eval", "--read-write-mode", "--expr", 'builtins.toFile "text" "contents"')
    nix.copy_all("compression=xz&compression-level=1")
    infos = [NarInfo.parse(file.read_bytes()) for file in nix.cache.glob("*.narinfo")]
    return Signed(
        nix,
        PublicKey.parse((nix.root / "key.pk").read_text()),
        {info.store_path.name: info for info in infos},
        {str(path.relative_to(nix.cache)): path.read_bytes() for path in nix.cache.rglob("*") if path.is_file()},
    )


def narinfo_name(info: NarInfo) -> str:
    return f"{info.store_path.hash_part}.narinfo"


def cache_of(signed: Signed, *stores: MemoryStore | Substituter, **options: object) -> BinaryCache:
    return BinaryCache(stores, trusted_keys=[signed.key], **options)  # type: ignore[arg-type]  # each has its own type


# Forgeries: each makes the bytes of a narinfo for the hash part of "victim".

Forge = Callable[[Signed], bytes]
Change = Callable[[NarInfo], NarInfo]
IMPOSTOR = SecretKey.generate(KEY_NAME)
STRANGER = SecretKey.generate("stranger-1")


def changed(change: Change) -> Forge:
    """Return a forgery: the narinfo of "victim", changed without a new signature."""
    return lambda signed: change(signed.victim).to_text().encode()


def signed_with(*signatures: Callable[[Signed], Signature]) -> Forge:
    """Return a forgery: the narinfo of "victim" with these signatures instead of its own."""
    return lambda signed: (
        replace(signed.victim, signatures=tuple(make(signed) for make in signatures)).to_text().encode()
    )


def sig_lines(make: Callable[[str], list[str]]) -> Forge:
    """Return a forgery: the narinfo of "victim" with other Sig lines, made from the good one; they may be invalid."""

    def forge(signed: Signed) -> bytes:
        (signature,) = signed.victim.signatures
        text = replace(signed.victim, signatures=()).to_text()
        return (text + "".join(f"Sig: {line}\n" for line in make(str(signature)))).encode()

    return forge


def good(signed: Signed) -> Signature:
    return signed.victim.signatures[0]


def by_impostor(signed: Signed) -> Signature:
    return IMPOSTOR.sign(signed.victim.fingerprint())


def by_stranger(signed: Signed) -> Signature:
    return STRANGER.sign(signed.victim.fingerprint())


def of_friend(signed: Signed) -> Signature:
    return signed.infos["friend"].signatures[0]


def flip(signature: Signature, index: int) -> Signature:
    sig = bytearray(signature.sig)
    sig[index] ^= 1
    return Signature(signature.name, bytes(sig))


def with_references(*references: str) -> Forge:
    return changed(lambda info: replace(info, references=references))


def twin(digits: str) -> str:
    """Return another spelling in base 64: lax decoders return the same bytes, since the last digit has unused bits."""
    raw, name = digits.partition(":")[2], digits.partition(":")[0]
    last = raw[-3]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    other = f"{raw[:-3]}{alphabet[alphabet.index(last) ^ 1]}=="
    assert b64decode(other) == b64decode(raw)
    return f"{name}:{other}"


FORGERIES: dict[str, Forge] = {
    "no signature": signed_with(),
    "a stranger's signature": signed_with(by_stranger),
    "the right name, another key": signed_with(by_impostor),
    "the right signature, another name": signed_with(lambda signed: replace(good(signed), name="stranger-1")),
    "an invalid key name": signed_with(lambda signed: replace(good(signed), name=f"{KEY_NAME}.")),
    "many bad signatures": signed_with(by_stranger, by_impostor, of_friend, *[by_stranger] * 50),
    "signature of another path": signed_with(of_friend),
    "signature of another path, and a flipped one": signed_with(of_friend, lambda signed: flip(good(signed), 0)),
    "signature with its first bit flipped": signed_with(lambda signed: flip(good(signed), 0)),
    "signature with its last bit flipped": signed_with(lambda signed: flip(good(signed), 63)),
    "signature of zeros": signed_with(lambda signed: Signature(KEY_NAME, bytes(64))),
    "Sig without a name": sig_lines(lambda sig: [sig.partition(":")[2]]),
    "invalid Sig lines": sig_lines(lambda sig: ["", ":", "x:x", "\u00e9:" + "A" * 88]),
    "another name": changed(lambda info: replace(info, store_path=replace(info.store_path, name="victim-2"))),
    "another NarHash": changed(lambda info: replace(info, nar_hash=NixHash("sha256", bytes(32)))),
    "NarHash of another path": lambda signed: (
        replace(signed.victim, nar_hash=signed.infos["friend"].nar_hash).to_text().encode()
    ),
    "larger NarSize": changed(lambda info: replace(info, nar_size=info.nar_size + 1)),
    "smaller NarSize": changed(lambda info: replace(info, nar_size=info.nar_size - 1)),
    "an additional reference": changed(
        lambda info: replace(info, references=(*info.references, f"{hash_part('x')}-x"))
    ),
    "a missing reference": with_references(FRIEND, BASE),
    "no self reference": with_references(FRIEND, ENEMY),
    "no references": with_references(),
    "another reference": with_references(BASE, FRIEND, f"{hash_part('x')}-x"),
    "a CA that is not the path's": changed(lambda info: replace(info, nar_size=1, ca=f"fixed:r:{info.nar_hash}")),
    "a CA of a text": lambda signed: (
        replace(signed.victim, signatures=(), ca=signed.infos["text"].ca).to_text().encode()
    ),
}
# Nix stops with an error at these; nar-serve ignores the invalid fields and does not trust the narinfo.
UNREADABLE: dict[str, Forge] = {
    "an incomplete CA": changed(lambda info: replace(info, signatures=(), ca="fixed")),
    "Sig without base 64": sig_lines(lambda sig: [sig.partition(":")[0] + ":"]),
    "Sig cut short": sig_lines(lambda sig: [sig[:-4]]),
    "Sig too long": sig_lines(lambda sig: [f"{KEY_NAME}:{b64encode(bytes(65)).decode()}"]),
    "Sig with a space in it": sig_lines(lambda sig: [sig.replace(":", ": ")]),
}

# Changes that a signature does not cover, by design: URL and similar fields only say where the NAR is and how it is compressed.
HARMLESS: dict[str, Forge] = {
    "nothing": changed(lambda info: info),
    "references in another order": with_references(ENEMY, FRIEND, BASE),
    "references twice": with_references(*(BASE, FRIEND, ENEMY) * 2),
    "Deriver": changed(lambda info: replace(info, deriver=f"{hash_part('x')}-x.drv")),
    "URL": changed(lambda info: replace(info, url="nar/elsewhere.nar")),
    "Compression": changed(lambda info: replace(info, compression="none")),
    "FileHash": changed(lambda info: replace(info, file_hash=NixHash("sha256", bytes(32)))),
    "no FileHash, no FileSize": changed(lambda info: replace(info, file_hash=None, file_size=None)),
    "FileSize": changed(lambda info: replace(info, file_size=1)),
    "NarHash in base 16": lambda signed: (
        signed.victim.to_text().replace(
            f"NarHash: {signed.victim.nar_hash}", f"NarHash: sha256:{signed.victim.nar_hash.digest.hex()}"
        )
    ).encode(),
    "bad signatures beside the good one": signed_with(by_stranger, by_impostor, of_friend, good),
}


@pytest.mark.parametrize("forge", (FORGERIES | UNREADABLE).values(), ids=FORGERIES | UNREADABLE)
def test_forgery_is_rejected_before_anything_else_is_fetched(signed: Signed, forge: Forge) -> None:
    store = WatchedStore(signed.with_narinfo(forge(signed)))
    with pytest.raises(UntrustedSignature):
        cache_of(signed, store).path_info(hash_part("victim"))
    assert set(store.asked) <= {"nix-cache-info", narinfo_name(signed.victim)}


@pytest.mark.parametrize("forge", HARMLESS.values(), ids=HARMLESS)
def test_unsigned_fields_may_change(signed: Signed, forge: Forge) -> None:
    cache = cache_of(signed, MemoryStore(signed.with_narinfo(forge(signed))))
    assert cache.path_info(hash_part("victim")).trust is Trust.SIGNATURE


def nix_error(signed: Signed, directory: Path, data: bytes) -> str:
    """Return the error output of Nix when it verifies a cache with only this narinfo; "" if it succeeds."""
    (directory / "nix-cache-info").write_text("StoreDir: /nix/store\n")
    (directory / narinfo_name(signed.victim)).write_bytes(data)
    trust = ("--option", "trusted-public-keys", str(signed.key), "--sigs-needed", "1")
    verify = ("nix", "store", "verify", "--store", f"file://{directory}", "--all", "--no-contents", *trust)
    done = signed.nix.run(*verify, check=False)
    return done.stderr if done.returncode else ""


@pytest.mark.parametrize("name", [*FORGERIES, *UNREADABLE])
def test_nix_rejects_the_same_forgeries(signed: Signed, tmp_path: Path, name: str) -> None:
    output = nix_error(signed, tmp_path, (FORGERIES | UNREADABLE)[name](signed))
    assert ("-victim' is untrusted" in output or "-victim-2' is untrusted" in output) is (name in FORGERIES)
    assert output


@pytest.mark.parametrize("forge", HARMLESS.values(), ids=HARMLESS)
def test_nix_accepts_the_same_changes(signed: Signed, tmp_path: Path, forge: Forge) -> None:
    assert nix_error(signed, tmp_path, forge(signed)) == ""


def test_other_spelling_in_base_64_is_the_same_signature(signed: Signed) -> None:
    """Another spelling of a good signature is not a forgery, as long as it decodes to the same signature."""
    data = sig_lines(lambda sig: [twin(sig)])(signed)
    assert cache_of(signed, MemoryStore(signed.with_narinfo(data))).path_info(
        hash_part("victim")
    ).narinfo.signatures == (good(signed),)


def test_narinfo_of_another_path_is_rejected(signed: Signed) -> None:
    """It has a valid signature, but is not of the requested path."""
    data = signed.infos["friend"].to_text().encode()
    with pytest.raises(NarInfoError):
        cache_of(signed, MemoryStore(signed.with_narinfo(data))).path_info(hash_part("victim"))


def test_signed_narinfo_with_another_hash_part_is_rejected(signed: Signed) -> None:
    """The narinfo of "victim", with its signature, for a path that is not in the cache."""
    moved = replace(signed.victim, store_path=replace(signed.victim.store_path, hash_part=hash_part("x")))
    store = MemoryStore(signed.files | {narinfo_name(moved): moved.to_text().encode()})
    with pytest.raises(UntrustedSignature):
        cache_of(signed, store).path_info(hash_part("x"))


def test_signed_narinfo_with_another_store_dir_is_rejected(signed: Signed) -> None:
    text = signed.victim.to_text().replace("/nix/store/", "/gnu/store/")
    files = signed.with_narinfo(text.encode()) | {"nix-cache-info": b"StoreDir: /gnu/store\n"}
    with pytest.raises(UntrustedSignature):
        cache_of(signed, MemoryStore(files)).path_info(hash_part("victim"), "/gnu/store")


def test_trust_depends_on_the_configured_keys(signed: Signed) -> None:
    files = signed.files
    for keys, trust in (
        ([signed.key], Trust.SIGNATURE),
        ([STRANGER.public_key, IMPOSTOR.public_key, signed.key], Trust.SIGNATURE),
        ([], Trust.UNCHECKED),
    ):
        assert BinaryCache([MemoryStore(files)], trusted_keys=keys).path_info(hash_part("victim")).trust is trust
    with pytest.raises(UntrustedSignature):
        BinaryCache([MemoryStore(files)], trusted_keys=[STRANGER.public_key, IMPOSTOR.public_key]).path_info(
            hash_part("victim")
        )


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    "forge", [FORGERIES["no signature"], FORGERIES["another NarHash"]], ids=["unsigned", "changed"]
)
def test_next_store_is_asked_after_a_forgery(signed: Signed, strategy: Strategy, forge: Forge) -> None:
    forged = WatchedStore(signed.with_narinfo(forge(signed)), "forged")
    correct = WatchedStore(signed.files, "correct")
    cache = cache_of(signed, forged, correct, strategy=strategy)
    try:
        info = cache.path_info(hash_part("victim"))
        assert (info.store, info.trust, info.narinfo) == (correct, Trust.SIGNATURE, signed.victim)
        assert contents(cache) == CONTENTS
        assert not any(path.startswith("nar/") for path in forged.asked)
        assert narinfo_name(signed.victim) in forged.asked
    finally:
        cache.close()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_path_is_untrusted_if_all_stores_send_forgeries(signed: Signed, strategy: Strategy) -> None:
    stores = [
        WatchedStore(signed.with_narinfo(FORGERIES[name](signed)), str(number))
        for number, name in enumerate(("no signature", "another name"))
    ]
    cache = cache_of(signed, *stores, strategy=strategy)
    try:
        with pytest.raises(UntrustedSignature):
            cache.path_info(hash_part("victim"))
        assert all(narinfo_name(signed.victim) in store.asked for store in stores)
    finally:
        cache.close()


def test_trusted_store_needs_no_signatures(signed: Signed, tmp_path: Path) -> None:
    for name, data in signed.with_narinfo(FORGERIES["no signature"](signed)).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    url = tmp_path.as_uri()
    for query, trusted in (("?trusted=true", True), ("?trusted=1", True), ("", False), ("?trusted=false", False)):
        cache = cache_of(signed, Substituter.open(url + query))
        if trusted:
            assert cache.path_info(hash_part("victim")).trust is Trust.STORE
            assert contents(cache) == CONTENTS
        else:
            with pytest.raises(UntrustedSignature):
                cache.path_info(hash_part("victim"))
        cache.close()


def test_trusted_store_does_not_make_another_store_trusted(signed: Signed) -> None:
    data = FORGERIES["no signature"](signed)
    trusted = Substituter(MemoryStore({}, "memory://trusted"), trusted=True)
    cache = cache_of(signed, trusted, MemoryStore(signed.with_narinfo(data), "memory://forged"))
    with pytest.raises(UntrustedSignature):
        cache.path_info(hash_part("victim"))
    cache.close()


# Fields that a signature does not cover can't change the contents either, because the signed NarHash is checked. This requires
# the whole NAR: a range of a remote file that is read without the rest (if it is uncompressed, or has several blocks) can't be
# verified; only NAR_VERIFY=strict prevents such reads.


def contents(cache: BinaryCache, of: str = "") -> bytes:
    """Read the only regular file of the path with that hash part (default: "victim") to its end."""
    accessor = cache.open(cache.path_info(of or hash_part("victim")))
    root = accessor.listing.root
    directory = accessor.listing.child(root, "bin") if root.kind == "directory" else None
    node = accessor.listing.child(directory, "x") if directory else root
    assert node is not None
    read = accessor.read(node)
    try:
        return b"".join(read)
    finally:
        read.close()


def other_contents() -> bytes:
    """Return a NAR that differs from that of "victim" only in the contents of its file, and has the same size."""
    programs: Tree = {"x": exe(CONTENTS.replace(b"real", b"evil"))}
    tree: dict[str, Tree] = {"bin": programs, "friend": link(f"/nix/store/{FRIEND}")}
    return nar(tree)


Place = Callable[[Signed], dict[str, bytes]]


def _other_nar_under_its_url(signed: Signed) -> dict[str, bytes]:
    return signed.files | {signed.victim.url: COMPRESS["xz"](other_contents())}


def _other_url(signed: Signed, compression: str = "xz") -> dict[str, bytes]:
    forged = replace(signed.victim, url="nar/evil", compression=compression, file_hash=None, file_size=None)
    return signed.with_narinfo(forged.to_text().encode()) | {"nar/evil": COMPRESS[compression](other_contents())}


def _nar_of_another_path(signed: Signed) -> dict[str, bytes]:
    return signed.with_narinfo(replace(signed.victim, url=signed.infos["friend"].url).to_text().encode())


SWAPPED: dict[str, Place] = {
    "another NAR": _other_nar_under_its_url,
    "another URL": _other_url,
    "another Compression": lambda signed: signed.with_narinfo(HARMLESS["Compression"](signed)),
    "the NAR of another path": _nar_of_another_path,
    "cut": lambda signed: signed.files | {signed.victim.url: signed.files[signed.victim.url][:-30]},
    "empty": lambda signed: signed.files | {signed.victim.url: b""},
}


@pytest.fixture(params=["stream", "cache", "strict"])
def options(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, object]]:
    """Options of BinaryCache: without a disk cache, with one, and with ``strict``."""
    if request.param == "stream":
        yield {}
        return
    cache = NarCache(tmp_path / "nars", size=lambda _directory: 1 << 30, max_fills=4)
    yield {"cache": cache, "strict": request.param == "strict"}
    cache.close()


def with_listing(signed: Signed, files: dict[str, bytes]) -> dict[str, bytes]:
    """Return the files with the correct listing of "victim", so that the NAR is not read to make one."""
    cache = cache_of(signed, MemoryStore(signed.files))
    listing = cache.open(cache.path_info(hash_part("victim"))).listing
    return files | {f"{hash_part('victim')}.ls": b"".join(listing.json_chunks())}


@pytest.mark.parametrize("listed", [False, True], ids=["no listing", "listing"])
@pytest.mark.parametrize("place", SWAPPED.values(), ids=SWAPPED)
def test_other_contents_are_never_returned_completely(
    signed: Signed, place: Place, listed: bool, options: dict[str, object]
) -> None:
    files = place(signed)
    cache = cache_of(signed, MemoryStore(with_listing(signed, files) if listed else files), **options)
    with pytest.raises((IntegrityError, CompressionError, FormatError)):
        contents(cache)


def test_strict_reads_no_ranges_of_remote_nars(signed: Signed, tmp_path: Path) -> None:
    files = with_listing(signed, _other_url(signed, "none"))
    nars = NarCache(tmp_path / "nars", size=lambda _directory: 1 << 30, max_fills=4)
    with pytest.raises(IntegrityError):
        contents(cache_of(signed, MemoryStore(files), cache=nars, strict=True))
    nars.close()


def test_correct_contents_are_returned(signed: Signed, options: dict[str, object]) -> None:
    for files in (signed.files, with_listing(signed, signed.files)):
        assert contents(cache_of(signed, MemoryStore(files), **options)) == CONTENTS


# Content-addressed paths need no signature if their contents match the address.


@pytest.mark.parametrize("name", ["tree", "flat", "text"])
def test_content_addressed_path_needs_no_signature(signed: Signed, name: str, options: dict[str, object]) -> None:
    info = signed.infos[name]
    assert not info.signatures
    cache = cache_of(signed, MemoryStore(signed.files), **options)
    assert cache.path_info(info.store_path.hash_part).trust is Trust.ADDRESS
    assert contents(cache, info.store_path.hash_part) == (b"contents" if name == "text" else CONTENTS)


@pytest.mark.parametrize("name", ["tree", "flat", "text"])
def test_content_address_that_does_not_match_the_narinfo_is_untrusted(signed: Signed, name: str) -> None:
    info = signed.infos[name]
    address = ContentAddress.parse(info.ca or "")
    for forged in (
        replace(info, ca=None),
        replace(info, references=(FRIEND,)),
        replace(info, store_path=replace(info.store_path, name="x")),
        replace(info, ca=str(ContentAddress(address.method, NixHash("sha256", bytes(32))))),
    ):
        with pytest.raises(UntrustedSignature):
            cache_of(signed, MemoryStore(signed.with_narinfo(forged.to_text().encode(), name))).path_info(
                info.store_path.hash_part
            )


@pytest.mark.parametrize("compression", ["none", "xz"])
@pytest.mark.parametrize("name", ["tree", "flat", "text"])
def test_contents_that_do_not_match_the_content_address_are_rejected(
    signed: Signed, name: str, compression: str, options: dict[str, object]
) -> None:
    """The address is correct, but NarHash, NarSize, listing and NAR are those of another file."""
    info = signed.infos[name]
    archive = nar(CONTENTS.replace(b"real", b"evil"))
    evil = nar_info(info.store_path, archive, compression=compression)
    files = signed.with_narinfo(replace(evil, ca=info.ca, references=info.references).to_text().encode(), name)
    cache = cache_of(signed, MemoryStore(files | {evil.url: COMPRESS[compression](archive)}), **options)
    with pytest.raises(
        IntegrityError
    ):  # immediately for a tree, whose address contains its NarHash; else before any byte is served
        cache.open(cache.path_info(info.store_path.hash_part))


def test_executable_flat_file_needs_a_signature_or_a_trusted_store(signed: Signed) -> None:
    """Nix 2.8 makes such paths, but their address covers only the bytes of the file, not its executable bit."""
    info, files = signed.infos["flat-executable"], signed.files
    assert info.ca == signed.infos["flat"].ca
    with pytest.raises(HashMismatch, match="not executable"):
        contents(cache_of(signed, MemoryStore(files)), info.store_path.hash_part)
    assert (
        contents(cache_of(signed, Substituter(MemoryStore(files), trusted=True)), info.store_path.hash_part) == CONTENTS
    )
    key = SecretKey.parse((signed.nix.root / "key.sk").read_text())
    signed_narinfo = replace(info, signatures=(key.sign(info.fingerprint()),)).to_text().encode()
    assert (
        contents(cache_of(signed, MemoryStore(files | {narinfo_name(info): signed_narinfo})), info.store_path.hash_part)
        == CONTENTS
    )


def test_signature_or_trusted_store_makes_the_content_address_irrelevant(signed: Signed) -> None:
    """Then the path is trusted whatever its CA says, even if the CA can't be parsed or checked."""
    key = SecretKey.parse((signed.nix.root / "key.sk").read_text())
    for ca in (signed.infos["flat"].ca, "fixed:git:sha1:x", "fixed:sha256:x", None):
        unsigned = replace(signed.infos["flat"], ca=ca)
        info = replace(unsigned, signatures=(key.sign(unsigned.fingerprint()),))
        store = MemoryStore(signed.with_narinfo(info.to_text().encode(), "flat"))
        assert cache_of(signed, store).path_info(info.store_path.hash_part).trust is Trust.SIGNATURE
        store = MemoryStore(signed.with_narinfo(unsigned.to_text().encode(), "flat"))
        trusted = cache_of(signed, Substituter(store, trusted=True))
        assert trusted.path_info(info.store_path.hash_part).trust is Trust.STORE
