"""No forged narinfo gets through: a cache that a real Nix signed, and what a forger may make of it.

Every forgery, and every change that is none, is also shown to a real Nix: it must come to the same verdict.
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
    """A cache of Nix's, its key, and its narinfos by the names of their store paths."""

    nix: RealNix
    key: PublicKey
    infos: dict[str, NarInfo]
    files: dict[str, bytes]

    @property
    def victim(self) -> NarInfo:
        return self.infos["victim"]

    def with_narinfo(self, data: bytes, name: str = "victim") -> dict[str, bytes]:
        """The files of the cache, with another narinfo for the path of that name."""
        return self.files | {narinfo_name(self.infos[name]): data}


class WatchedStore(MemoryStore):
    """Knows what was asked of it."""

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


# Forgeries: from the cache, the bytes of a narinfo for the victim's hash part.

Forge = Callable[[Signed], bytes]
Change = Callable[[NarInfo], NarInfo]
IMPOSTOR = SecretKey.generate(KEY_NAME)
STRANGER = SecretKey.generate("stranger-1")


def changed(change: Change) -> Forge:
    """The victim's narinfo, with a change behind the signature's back."""
    return lambda signed: change(signed.victim).to_text().encode()


def signed_with(*signatures: Callable[[Signed], Signature]) -> Forge:
    """The victim's narinfo with these signatures instead of its own."""
    return lambda signed: (
        replace(signed.victim, signatures=tuple(make(signed) for make in signatures)).to_text().encode()
    )


def sig_lines(make: Callable[[str], list[str]]) -> Forge:
    """The victim's narinfo with other Sig lines, made of the good one; also ones that no Signature can be."""

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
    """Another spelling of base 64: the same bytes by lax decoders, since the last digit has bits to spare."""
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
    "the name of a key that is no name": signed_with(lambda signed: replace(good(signed), name=f"{KEY_NAME}.")),
    "many bad signatures": signed_with(by_stranger, by_impostor, of_friend, *[by_stranger] * 50),
    "signature of another path": signed_with(of_friend),
    "another path's, and another path's key name": signed_with(of_friend, lambda signed: flip(good(signed), 0)),
    "signature with its first bit flipped": signed_with(lambda signed: flip(good(signed), 0)),
    "signature with its last bit flipped": signed_with(lambda signed: flip(good(signed), 63)),
    "signature of zeros": signed_with(lambda signed: Signature(KEY_NAME, bytes(64))),
    "Sig without a name": sig_lines(lambda sig: [sig.partition(":")[2]]),
    "Sig that is none": sig_lines(lambda sig: ["", ":", "x:x", "\u00e9:" + "A" * 88]),
    "another name": changed(lambda info: replace(info, store_path=replace(info.store_path, name="victim-2"))),
    "another NarHash": changed(lambda info: replace(info, nar_hash=NixHash("sha256", bytes(32)))),
    "NarHash of another path": lambda signed: (
        replace(signed.victim, nar_hash=signed.infos["friend"].nar_hash).to_text().encode()
    ),
    "larger NarSize": changed(lambda info: replace(info, nar_size=info.nar_size + 1)),
    "smaller NarSize": changed(lambda info: replace(info, nar_size=info.nar_size - 1)),
    "a reference more": changed(lambda info: replace(info, references=(*info.references, f"{hash_part('x')}-x"))),
    "a reference less": with_references(FRIEND, BASE),
    "no self reference": with_references(FRIEND, ENEMY),
    "no references": with_references(),
    "another reference": with_references(BASE, FRIEND, f"{hash_part('x')}-x"),
    "a CA that is not the path's": changed(lambda info: replace(info, nar_size=1, ca=f"fixed:r:{info.nar_hash}")),
    "a CA of a text": lambda signed: (
        replace(signed.victim, signatures=(), ca=signed.infos["text"].ca).to_text().encode()
    ),
}
# Nix stops at these; we read on, and believe nothing of it.
UNREADABLE: dict[str, Forge] = {
    "a CA that says nothing": changed(lambda info: replace(info, signatures=(), ca="fixed")),
    "Sig without base 64": sig_lines(lambda sig: [sig.partition(":")[0] + ":"]),
    "Sig cut short": sig_lines(lambda sig: [sig[:-4]]),
    "Sig too long": sig_lines(lambda sig: [f"{KEY_NAME}:{b64encode(bytes(65)).decode()}"]),
    "Sig with a space in it": sig_lines(lambda sig: [sig.replace(":", ": ")]),
}

# What a signature does not cover, by design: URL and the like only say where the NAR is and how it is packed.
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
def test_a_forgery_is_refused_before_anything_else_is_fetched(signed: Signed, forge: Forge) -> None:
    store = WatchedStore(signed.with_narinfo(forge(signed)))
    with pytest.raises(UntrustedSignature):
        cache_of(signed, store).path_info(hash_part("victim"))
    assert set(store.asked) <= {"nix-cache-info", narinfo_name(signed.victim)}


@pytest.mark.parametrize("forge", HARMLESS.values(), ids=HARMLESS)
def test_what_is_not_signed_may_change(signed: Signed, forge: Forge) -> None:
    cache = cache_of(signed, MemoryStore(signed.with_narinfo(forge(signed))))
    assert cache.path_info(hash_part("victim")).trust is Trust.SIGNATURE


def nix_says(signed: Signed, directory: Path, data: bytes) -> str:
    """What Nix complains of when it verifies a cache with just this narinfo; "" if of nothing."""
    (directory / "nix-cache-info").write_text("StoreDir: /nix/store\n")
    (directory / narinfo_name(signed.victim)).write_bytes(data)
    trust = ("--option", "trusted-public-keys", str(signed.key), "--sigs-needed", "1")
    verify = ("nix", "store", "verify", "--store", f"file://{directory}", "--all", "--no-contents", *trust)
    done = signed.nix.run(*verify, check=False)
    return done.stderr if done.returncode else ""


@pytest.mark.parametrize("name", [*FORGERIES, *UNREADABLE])
def test_nix_refuses_the_same_forgeries(signed: Signed, tmp_path: Path, name: str) -> None:
    said = nix_says(signed, tmp_path, (FORGERIES | UNREADABLE)[name](signed))
    assert ("-victim' is untrusted" in said or "-victim-2' is untrusted" in said) is (name in FORGERIES)
    assert said


@pytest.mark.parametrize("forge", HARMLESS.values(), ids=HARMLESS)
def test_nix_does_not_mind_the_same_changes(signed: Signed, tmp_path: Path, forge: Forge) -> None:
    assert nix_says(signed, tmp_path, forge(signed)) == ""


def test_base_64_is_read_strictly_or_at_least_to_the_same_bytes(signed: Signed) -> None:
    """Another spelling of a good signature is no forgery; what matters is that it is not another signature."""
    data = sig_lines(lambda sig: [twin(sig)])(signed)
    assert cache_of(signed, MemoryStore(signed.with_narinfo(data))).path_info(
        hash_part("victim")
    ).narinfo.signatures == (good(signed),)


def test_another_paths_narinfo(signed: Signed) -> None:
    """Well signed, and not what was asked for."""
    data = signed.infos["friend"].to_text().encode()
    with pytest.raises(NarInfoError):
        cache_of(signed, MemoryStore(signed.with_narinfo(data))).path_info(hash_part("victim"))


def test_another_hash_part(signed: Signed) -> None:
    """The victim's narinfo, signature and all, for a path that is not in the cache."""
    moved = replace(signed.victim, store_path=replace(signed.victim.store_path, hash_part=hash_part("x")))
    store = MemoryStore(signed.files | {narinfo_name(moved): moved.to_text().encode()})
    with pytest.raises(UntrustedSignature):
        cache_of(signed, store).path_info(hash_part("x"))


def test_another_store_dir(signed: Signed) -> None:
    text = signed.victim.to_text().replace("/nix/store/", "/gnu/store/")
    files = signed.with_narinfo(text.encode()) | {"nix-cache-info": b"StoreDir: /gnu/store\n"}
    with pytest.raises(UntrustedSignature):
        cache_of(signed, MemoryStore(files)).path_info(hash_part("victim"), "/gnu/store")


def test_a_cache_is_only_as_good_as_its_keys(signed: Signed) -> None:
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
def test_the_next_store_is_asked(signed: Signed, strategy: Strategy, forge: Forge) -> None:
    forged = WatchedStore(signed.with_narinfo(forge(signed)), "forged")
    honest = WatchedStore(signed.files, "honest")
    cache = cache_of(signed, forged, honest, strategy=strategy)
    try:
        info = cache.path_info(hash_part("victim"))
        assert (info.store, info.trust, info.narinfo) == (honest, Trust.SIGNATURE, signed.victim)
        assert contents(cache) == CONTENTS
        assert not any(path.startswith("nar/") for path in forged.asked)
        assert narinfo_name(signed.victim) in forged.asked
    finally:
        cache.close()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_store_has_a_good_one(signed: Signed, strategy: Strategy) -> None:
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


def test_a_store_that_is_trusted_as_it_is(signed: Signed, tmp_path: Path) -> None:
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


def test_one_trusted_store_does_not_vouch_for_another(signed: Signed) -> None:
    data = FORGERIES["no signature"](signed)
    trusted = Substituter(MemoryStore({}, "memory://trusted"), trusted=True)
    cache = cache_of(signed, trusted, MemoryStore(signed.with_narinfo(data), "memory://forged"))
    with pytest.raises(UntrustedSignature):
        cache.path_info(hash_part("victim"))
    cache.close()


# What a signature does not cover can still not bring other contents: the signed NarHash tells. That takes the whole NAR: a part
# of a remote file that is read without the rest (of no compression, or of many blocks) is the store's word alone, and only
# NAR_VERIFY=strict rules that out.


def contents(cache: BinaryCache, of: str = "") -> bytes:
    """The one regular file of the path with that hash part, by default the victim, read to its end."""
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
    """A NAR with other contents, as long as the victim's and with all else the same."""
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
    """What BinaryCache is told of where NARs are kept and when they are checked."""
    if request.param == "stream":
        yield {}
        return
    cache = NarCache(tmp_path / "nars", size=lambda _directory: 1 << 30, max_fills=4)
    yield {"cache": cache, "strict": request.param == "strict"}
    cache.close()


def with_listing(signed: Signed, files: dict[str, bytes]) -> dict[str, bytes]:
    """The cache with a listing of what the victim really holds, so that the NAR is not read for that."""
    cache = cache_of(signed, MemoryStore(signed.files))
    listing = cache.open(cache.path_info(hash_part("victim"))).listing
    return files | {f"{hash_part('victim')}.ls": b"".join(listing.json_chunks())}


@pytest.mark.parametrize("listed", [False, True], ids=["no listing", "listing"])
@pytest.mark.parametrize("place", SWAPPED.values(), ids=SWAPPED)
def test_other_contents_never_come_whole(
    signed: Signed, place: Place, listed: bool, options: dict[str, object]
) -> None:
    files = place(signed)
    cache = cache_of(signed, MemoryStore(with_listing(signed, files) if listed else files), **options)
    with pytest.raises((IntegrityError, CompressionError, FormatError)):
        contents(cache)


def test_strict_reads_no_part_of_a_nar_alone(signed: Signed, tmp_path: Path) -> None:
    files = with_listing(signed, _other_url(signed, "none"))
    nars = NarCache(tmp_path / "nars", size=lambda _directory: 1 << 30, max_fills=4)
    with pytest.raises(IntegrityError):
        contents(cache_of(signed, MemoryStore(files), cache=nars, strict=True))
    nars.close()


def test_the_right_contents_come(signed: Signed, options: dict[str, object]) -> None:
    for files in (signed.files, with_listing(signed, signed.files)):
        assert contents(cache_of(signed, MemoryStore(files), **options)) == CONTENTS


# Content addresses need no signature, if they are true.


@pytest.mark.parametrize("name", ["tree", "flat", "text"])
def test_a_content_address_needs_no_signature(signed: Signed, name: str, options: dict[str, object]) -> None:
    info = signed.infos[name]
    assert not info.signatures
    cache = cache_of(signed, MemoryStore(signed.files), **options)
    assert cache.path_info(info.store_path.hash_part).trust is Trust.ADDRESS
    assert contents(cache, info.store_path.hash_part) == (b"contents" if name == "text" else CONTENTS)


@pytest.mark.parametrize("name", ["tree", "flat", "text"])
def test_a_content_address_that_is_not_true(signed: Signed, name: str) -> None:
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
def test_other_contents_for_a_content_address(
    signed: Signed, name: str, compression: str, options: dict[str, object]
) -> None:
    """The address is true, but NarHash, NarSize, listing and NAR are another file's."""
    info = signed.infos[name]
    archive = nar(CONTENTS.replace(b"real", b"evil"))
    evil = nar_info(info.store_path, archive, compression=compression)
    files = signed.with_narinfo(replace(evil, ca=info.ca, references=info.references).to_text().encode(), name)
    cache = cache_of(signed, MemoryStore(files | {evil.url: COMPRESS[compression](archive)}), **options)
    with pytest.raises(
        IntegrityError
    ):  # at once for a tree, whose address is its NarHash; else before any byte is served
        cache.open(cache.path_info(info.store_path.hash_part))


def test_an_address_does_not_say_that_a_file_is_executable(signed: Signed) -> None:
    """Nix 2.8 makes such paths; the address is that of the bytes alone. So it takes a signature, or trust in the store."""
    info, files = signed.infos["flat-executable"], signed.files
    assert info.ca == signed.infos["flat"].ca
    with pytest.raises(HashMismatch, match="not executable"):
        contents(cache_of(signed, MemoryStore(files)), info.store_path.hash_part)
    assert (
        contents(cache_of(signed, Substituter(MemoryStore(files), trusted=True)), info.store_path.hash_part) == CONTENTS
    )
    key = SecretKey.parse((signed.nix.root / "key.sk").read_text())
    vouched = replace(info, signatures=(key.sign(info.fingerprint()),)).to_text().encode()
    assert (
        contents(cache_of(signed, MemoryStore(files | {narinfo_name(info): vouched})), info.store_path.hash_part)
        == CONTENTS
    )


def test_a_signature_or_a_trusted_store_makes_the_address_needless(signed: Signed) -> None:
    """Then a path is believed whatever its CA says, also one that can't be read or checked here."""
    key = SecretKey.parse((signed.nix.root / "key.sk").read_text())
    for ca in (signed.infos["flat"].ca, "fixed:git:sha1:x", "fixed:sha256:x", None):
        unsigned = replace(signed.infos["flat"], ca=ca)
        info = replace(unsigned, signatures=(key.sign(unsigned.fingerprint()),))
        store = MemoryStore(signed.with_narinfo(info.to_text().encode(), "flat"))
        assert cache_of(signed, store).path_info(info.store_path.hash_part).trust is Trust.SIGNATURE
        store = MemoryStore(signed.with_narinfo(unsigned.to_text().encode(), "flat"))
        trusted = cache_of(signed, Substituter(store, trusted=True))
        assert trusted.path_info(info.store_path.hash_part).trust is Trust.STORE
