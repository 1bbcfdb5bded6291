import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narcore.errors import NarInfoError
from narcore.formats import narinfo_json
from narcore.formats.narinfo import LINES_MAX, REFERENCES_MAX, NarInfo, Quirk
from narcore.formats.nixbase32 import ALPHABET
from narcore.formats.nixhash import NixHash
from narcore.formats.signature import PublicKey, SecretKey, Signature
from narcore.formats.storepath import StorePath
from tests.realnix import RealNix

HASH = "7rjj86a15146cq1d3qy068lml7n7ykzm"
A, B = f"{HASH}-a", f"{HASH}-b"
DIGEST = bytes(range(32))
NIX32 = NixHash("sha256", DIGEST).to_nix32()
SIG = f"cache-1:{'A' * 86}=="

FIELDS = {
    "StorePath": f"/nix/store/{HASH}-hello-2.12",
    "URL": "nar/1x.nar.xz",
    "Compression": "xz",
    "FileHash": NIX32,
    "FileSize": "100",
    "NarHash": NIX32,
    "NarSize": "226560",
    "References": f"{A} {B}",
    "Deriver": f"{HASH}-hello-2.12.drv",
    "Sig": SIG,
    "CA": "fixed:r:sha256:1b8m",
}
INFO = NarInfo(
    store_path=StorePath("/nix/store", HASH, "hello-2.12"),
    url="nar/1x.nar.xz",
    compression="xz",
    nar_hash=NixHash("sha256", DIGEST),
    nar_size=226560,
    file_hash=NixHash("sha256", DIGEST),
    file_size=100,
    references=(A, B),
    deriver=f"{HASH}-hello-2.12.drv",
    signatures=(Signature("cache-1", bytes(64)),),
    ca="fixed:r:sha256:1b8m",
)


def text(*more: str, **fields: str | None) -> bytes:
    """Return a narinfo with FIELDS, with ``fields`` changed (None: omitted) and the lines ``more`` appended."""
    merged = {**FIELDS, **fields}
    lines = [f"{key}: {value}" for key, value in merged.items() if value is not None] + list(more)
    return "".join(line + "\n" for line in lines).encode("utf-8", "surrogateescape")


def test_narinfos_of_nix_are_read_and_written_unchanged() -> None:
    info = NarInfo.parse(text())
    assert info == INFO
    assert info.quirks is Quirk.NONE
    assert info.to_text().encode() == text()


def test_a_minimal_narinfo_has_defaults() -> None:
    minimal = f"StorePath: {FIELDS['StorePath']}\nURL: x\nNarHash: {NIX32}\nNarSize: 1\n".encode()
    info = NarInfo.parse(minimal)
    assert (info.compression, info.references, info.signatures) == ("bzip2", (), ())
    assert (info.file_hash, info.file_size, info.deriver, info.system, info.ca) == (None,) * 5
    assert info.quirks == Quirk.NO_COMPRESSION | Quirk.NO_REFERENCES


QUIRKS: dict[str, tuple[bytes, Quirk, NarInfo]] = {
    "no References": (text(References=None), Quirk.NO_REFERENCES, replace(INFO, references=())),
    "empty References": (text(References=""), Quirk.NONE, replace(INFO, references=())),
    "no Compression": (text(Compression=None), Quirk.NO_COMPRESSION, replace(INFO, compression="bzip2")),
    "empty Compression": (text(Compression=""), Quirk.NO_COMPRESSION, replace(INFO, compression="bzip2")),
    "hex": (text(NarHash=f"sha256:{DIGEST.hex()}"), Quirk.HEX_HASH, INFO),
    "base64": (text(NarHash=f"sha256:{INFO.nar_hash.to_sri()[7:]}"), Quirk.BASE64_HASH, INFO),
    "SRI": (text(NarHash=INFO.nar_hash.to_sri()), Quirk.SRI_HASH, INFO),
    "hex FileHash": (text(FileHash=f"sha256:{DIGEST.hex()}"), Quirk.HEX_HASH, INFO),
    "unknown-deriver": (text(Deriver="unknown-deriver"), Quirk.UNKNOWN_DERIVER, replace(INFO, deriver=None)),
    "System": (text(System="x86_64-linux"), Quirk.SYSTEM, replace(INFO, system="x86_64-linux")),
    "no space": (text("URL:x:y", URL=None), Quirk.NONE, replace(INFO, url="x:y")),
    "unknown field": (text("Provenance: {}", "X:y"), Quirk.UNKNOWN_FIELD, INFO),
    "repeated URL": (text("URL: second"), Quirk.REPEATED_FIELD, replace(INFO, url="second")),
    "repeated Sig": (text(f"Sig: {SIG}"), Quirk.NONE, replace(INFO, signatures=INFO.signatures * 2)),
    "unsorted": (text(References=f"{B} {A}"), Quirk.UNSORTED_REFERENCES, replace(INFO, references=(B, A))),
    "duplicate": (text(References=f"{A} {A}"), Quirk.UNSORTED_REFERENCES, replace(INFO, references=(A, A))),
    "unknown signature": (text("Sig: pq-1:AAAA", "Sig: x"), Quirk.UNREADABLE_SIGNATURE, INFO),
    "no file fields": (text(FileHash=None, FileSize="0"), Quirk.NONE, replace(INFO, file_hash=None, file_size=None)),
    "URL with a colon": (text(URL="https://h:1/x?a=b:c"), Quirk.NONE, replace(INFO, url="https://h:1/x?a=b:c")),
}


@pytest.mark.parametrize(("data", "quirk", "expected"), QUIRKS.values(), ids=QUIRKS)
def test_unusual_input_is_accepted_and_recorded_as_a_quirk(data: bytes, quirk: Quirk, expected: NarInfo) -> None:
    info = NarInfo.parse(data)
    assert info == expected
    assert info.quirks == quirk
    assert NarInfo.parse(info.to_text().encode()) == info


WRONG: dict[str, tuple[bytes, str]] = {
    "no StorePath": (text(StorePath=None), "field StorePath"),
    "no URL": (text(URL=None), "field URL"),
    "empty URL": (text(URL=""), "field URL"),
    "no NarHash": (text(NarHash=None), "field NarHash"),
    "no NarSize": (text(NarSize=None), "field NarSize"),
    "NarSize 0": (text(NarSize="0"), "field NarSize"),
    "NarSize negative": (text(NarSize="-1"), "field NarSize"),
    "NarSize with other digits": (text(NarSize="\u0661"), "field NarSize"),
    "NarSize 2^63": (text(NarSize=str(2**63)), "field NarSize"),
    "NarSize endless": (text(NarSize="9" * 10_000), "field NarSize"),
    "FileSize is not a number": (text(FileSize="1 kB"), "field FileSize"),
    "NarHash is not a hash": (text(NarHash="sha256:xyz"), "field NarHash"),
    "NarHash by sha512": (text(NarHash="sha512:" + "0" * 128), "field NarHash"),
    "FileHash is not a hash": (text(FileHash="xyz"), "field FileHash"),
    "StorePath of another store": (text(StorePath=f"/gnu/store/{A}"), "field StorePath"),
    "StorePath with ..": (text(StorePath=f"/nix/store/{HASH}-x/../../etc"), "field StorePath"),
    "reference with a path": (text(References=f"/nix/store/{A}"), "field References"),
    "references with commas": (text(References=f"{A},{B}"), "field References"),
    "Deriver is not a store path": (text(Deriver="hello.drv"), "field Deriver"),
    "two References": (text(f"References: {A}"), "field References"),
    "two CA": (text("CA: x"), "field CA"),
    "URL with a control character": (text(URL="nar/x\r"), "field URL"),
    "line without a colon": (text("rubbish"), "line 12"),
    "empty line": (text(""), "line 12"),
    "no newline at the end": (text()[:-1], "line 11"),
    "not UTF-8": (text(URL="nar/\udcff"), f"offset {text().index(b'1x.nar')}"),
    "HTML": (b"<!DOCTYPE html>\n<p>StorePath: x</p>\n", "line 1"),
    "HTML after white space": (b"\r\n <html>", "line 1"),
    "empty": (b"", "field StorePath"),
    "text": (b"404", "line 1"),
    "too many lines": (text(*["X: y"] * LINES_MAX), ""),
    "too many references": (text(References=f"{A} " * (REFERENCES_MAX + 1)), "field References"),
}


@pytest.mark.parametrize(("data", "where"), WRONG.values(), ids=WRONG)
def test_an_invalid_narinfo_is_refused_with_the_place(data: bytes, where: str) -> None:
    with pytest.raises(NarInfoError) as caught:
        NarInfo.parse(data)
    assert caught.value.where == where


def test_the_error_for_html_mentions_html() -> None:
    with pytest.raises(NarInfoError, match="HTML"):
        NarInfo.parse(b"<html><body>Please sign in</body></html>")


def test_another_store_dir_is_accepted() -> None:
    data = text(StorePath=f"/gnu/store/{HASH}-x")
    info = NarInfo.parse(data, "/gnu/store")
    assert info.store_path.store_dir == "/gnu/store"
    assert f",/gnu/store/{B}".encode() in info.fingerprint()


@pytest.mark.parametrize(
    "changes",
    [
        {"url": "x\nNarSize: 1"},
        {"url": ""},
        {"compression": ""},
        {"system": "a\nb"},
        {"ca": "a\0"},
        {"nar_size": 0},
        {"file_size": -1},
        {"nar_hash": NixHash("md5", bytes(16))},
        {"references": ("a",)},
        {"deriver": f"{HASH}-x\n"},
    ],
    ids=str,
)
def test_values_that_can_not_be_written_are_refused_on_construction(changes: dict[str, str]) -> None:
    with pytest.raises(NarInfoError):
        replace(INFO, **changes)  # type: ignore[arg-type]  # each value has its own type


def test_the_fingerprint_sorts_references() -> None:
    expected = f"1;/nix/store/{HASH}-hello-2.12;{NIX32};226560;/nix/store/{A},/nix/store/{B}".encode()
    assert INFO.fingerprint() == expected
    assert replace(INFO, references=(B, A, B)).fingerprint() == expected
    assert replace(INFO, references=()).fingerprint().endswith(b";226560;")


ONE, OTHER = SecretKey.generate("one"), SecretKey.generate("other")
SAME_NAME = SecretKey.generate("one")


@pytest.mark.parametrize(
    ("signers", "trusted", "expected"),
    [
        ([], [ONE], None),
        ([ONE], [], None),
        ([ONE], [OTHER], None),
        ([ONE], [OTHER, ONE], ONE),
        ([OTHER, ONE], [ONE], ONE),
        ([SAME_NAME], [ONE], None),
        ([SAME_NAME, ONE], [ONE], ONE),
        ([ONE], [SAME_NAME, ONE], ONE),
    ],
)
def test_one_valid_signature_by_a_trusted_key_is_enough(
    signers: Sequence[SecretKey], trusted: Sequence[SecretKey], expected: SecretKey | None
) -> None:
    info = replace(INFO, signatures=tuple(key.sign(INFO.fingerprint()) for key in signers))
    keys = [key.public_key for key in trusted]
    assert info.signed_by(keys) == (None if expected is None else expected.public_key)
    assert replace(info, nar_size=1).signed_by(keys) is None


BASE_NAMES = st.builds(
    "{}-{}".format, st.text(ALPHABET, min_size=32, max_size=32), st.from_regex(r"[0-9a-z+_?=-]{1,40}", fullmatch=True)
)
TEXTS = st.text(st.characters(codec="utf-8", min_codepoint=32, exclude_characters="\x7f"), min_size=1, max_size=40)
SIZES = st.integers(1, 2**63 - 1)
HASHES = st.builds(NixHash, st.just("sha256"), st.binary(min_size=32, max_size=32))
INFOS = st.builds(
    NarInfo,
    store_path=BASE_NAMES.map(StorePath.from_base_name),
    url=TEXTS,
    compression=TEXTS,
    nar_hash=HASHES,
    nar_size=SIZES,
    file_hash=st.none() | HASHES,
    file_size=st.none() | SIZES,
    references=st.lists(BASE_NAMES, max_size=4).map(tuple),
    deriver=st.none() | BASE_NAMES,
    system=st.none() | TEXTS,
    signatures=st.lists(st.builds(Signature, st.just("k"), st.binary(min_size=64, max_size=64)), max_size=3).map(tuple),
    ca=st.none() | TEXTS,
    quirks=st.just(Quirk.NONE),
)


@given(INFOS)
def test_a_written_narinfo_is_read_back(info: NarInfo) -> None:
    assert NarInfo.parse(info.to_text().encode()) == info


@given(
    st.binary()
    | st.tuples(st.integers(0, len(text())), st.integers(0, 20), st.binary(max_size=8)).map(
        lambda cut: text()[: cut[0]] + cut[2] + text()[cut[0] + cut[1] :]
    )
)
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        info = NarInfo.parse(data)
    except NarInfoError:
        return
    assert NarInfo.parse(info.to_text().encode()) == info


def test_signatures_of_a_real_nix_are_verified(real_nix: RealNix) -> None:
    key = PublicKey.parse((real_nix.root / "key.pk").read_text())
    infos = {}
    for file in real_nix.cache.glob("*.narinfo"):
        info = NarInfo.parse(file.read_bytes())
        assert info.to_text().encode() == file.read_bytes()
        assert info.quirks is Quirk.NONE
        assert info.signed_by([SecretKey.generate("test-1").public_key, key]) == key
        infos[info.store_path.name] = info
    assert infos.keys() == {"a", "b", "c", "tree"}
    assert set(infos["b"].references) == {infos["a"].store_path.base_name, infos["c"].store_path.base_name}


def test_a_real_nix_verifies_our_signatures(real_nix: RealNix) -> None:
    ours = SecretKey.parse((real_nix.root / "key.sk").read_text())
    cache = real_nix.root / "ours"
    cache.mkdir()
    (cache / "nix-cache-info").write_text("StoreDir: /nix/store\n")
    accepted = {}
    for good in (True, False):
        for file in real_nix.cache.glob("*.narinfo"):
            # Without a CA, because Nix needs no signature if there is one.
            info = replace(NarInfo.parse(file.read_bytes()), ca=None, signatures=())
            signed = info if good else replace(info, nar_size=info.nar_size + 1)
            info = replace(info, signatures=(ours.sign(signed.fingerprint()),))
            (cache / file.name).write_text(info.to_text())
        trust = ("--option", "trusted-public-keys", str(ours.public_key))
        verify = (
            "nix",
            "store",
            "verify",
            "--all",
            "--store",
            f"file://{cache}",
            "--no-contents",
            "--sigs-needed",
            "1",
        )
        accepted[good] = real_nix.run(*verify, *trust, check=False).returncode == 0
    assert accepted == {True: True, False: False}


MINIMAL = replace(
    INFO, references=(), deriver=None, signatures=(), ca=None, file_hash=None, file_size=None, compression="none"
)


@pytest.mark.parametrize("info", [INFO, MINIMAL, replace(INFO, store_path=StorePath("/gnu/store", HASH, "x"))])
def test_json_is_read_back(info: NarInfo) -> None:
    fields = json.loads(json.dumps(narinfo_json.to_json(info)))
    assert narinfo_json.from_json(fields) == info
    assert None not in fields.values()


def test_invalid_json_is_refused() -> None:
    good = narinfo_json.to_json(INFO)
    for name in good:
        for value in (None, 7, "x", [1], {"a": 1}, -1):
            with suppress(NarInfoError):
                narinfo_json.from_json(good | {name: value})
    for name in ("path", "narHash", "narSize", "references", "signatures", "url", "compression"):
        with pytest.raises(NarInfoError):
            narinfo_json.from_json({key: value for key, value in good.items() if key != name})
    for value in ([], None, "x", 1):
        with pytest.raises(NarInfoError):
            narinfo_json.from_json(value)
    for wrong in (
        {"narSize": 1.5},
        {"downloadSize": True},
        {"references": ["/nix/store/x"]},
        {"path": "x"},
        {"url": 1},
    ):
        with pytest.raises(NarInfoError):
            narinfo_json.from_json(good | wrong)
