import hashlib
from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narcore.errors import HashError
from narcore.formats import nixbase32
from narcore.formats.nixhash import DIGEST_SIZES, NixHash, Notation, notation_of


def written(algorithm: str, digest: bytes, notation: Notation) -> str:
    match notation:
        case Notation.HEX:
            return f"{algorithm}:{digest.hex()}"
        case Notation.NIX32:
            return f"{algorithm}:{nixbase32.encode(digest)}"
        case Notation.BASE64:
            return f"{algorithm}:{b64encode(digest).decode()}"
        case Notation.SRI:
            return f"{algorithm}-{b64encode(digest).decode()}"


@pytest.mark.parametrize("algorithm", DIGEST_SIZES)
@pytest.mark.parametrize("notation", Notation)
def test_every_notation_of_every_algorithm_is_read(algorithm: str, notation: Notation) -> None:
    digest = hashlib.new(algorithm, b"nix", usedforsecurity=False).digest()
    text = written(algorithm, digest, notation)
    assert NixHash.parse(text) == NixHash(algorithm, digest)
    assert notation_of(text) is notation


def test_the_notations_are_those_of_nix() -> None:
    empty = NixHash("sha256", hashlib.sha256(b"").digest())
    assert str(empty) == empty.to_nix32() == "sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73"
    assert empty.to_sri() == "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
    assert empty.nix32 == "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0" * 64,
        "sha256",
        "sha256:",
        "sha3:" + "0" * 64,
        "SHA256:" + "0" * 64,
        "sha256:" + "0" * 63,
        "sha256:" + "g" * 64,
        "sha256:" + " 0" * 32,
        "sha256:" + "e" * 52,
        "sha256:" + "z" * 52,
        "sha256:" + "!" * 43 + "=",
        "sha256:" + "A" * 44,
        "sha256-" + "0" * 64,
        "sha256-" + "0" * 52,
        "sha1:" + "0" * 64,
    ],
)
def test_an_invalid_hash_is_refused(text: str) -> None:
    with pytest.raises(HashError):
        NixHash.parse(text)


@pytest.mark.parametrize("text", ["x", "sha256:", "sha256-" + "0" * 64, "sha256-" + "0" * 52])
def test_a_text_without_a_notation_is_refused(text: str) -> None:
    with pytest.raises(HashError):
        notation_of(text)


def test_an_invalid_digest_is_refused_on_construction() -> None:
    with pytest.raises(HashError):
        NixHash("sha256", b"short")
    with pytest.raises(HashError):
        NixHash("crc32", b"1234")


@given(
    st.tuples(
        st.sampled_from(["sha256", "md5", "sha1", "sha512", "x"]),
        st.sampled_from([":", "-", ""]),
        st.text(max_size=10) | st.text("0123456789abcdf=+/", min_size=52, max_size=64),
    ).map("".join)
)
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parsed = NixHash.parse(text)
    except HashError:
        return
    assert NixHash.parse(parsed.to_nix32()) == parsed == NixHash.parse(parsed.to_sri())
