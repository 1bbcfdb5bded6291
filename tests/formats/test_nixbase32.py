import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narcore.errors import HashError
from narcore.formats import nixbase32

# The hash of an empty file, as `nix-hash --type sha256 --flat --base32 /dev/null` prints it.
EMPTY_SHA256 = "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73"


def test_the_digits_are_those_of_nix() -> None:
    assert nixbase32.encode(hashlib.sha256(b"").digest()) == EMPTY_SHA256
    assert nixbase32.decode(EMPTY_SHA256) == hashlib.sha256(b"").digest()


@given(st.binary(max_size=80))
def test_encoded_bytes_are_decoded(raw: bytes) -> None:
    text = nixbase32.encode(raw)
    assert len(text) == nixbase32.encoded_length(len(raw))
    assert nixbase32.decode(text) == raw


@given(st.text(max_size=60) | st.text(nixbase32.ALPHABET, max_size=60))
def test_every_accepted_text_is_canonical(text: str) -> None:
    try:
        raw = nixbase32.decode(text)
    except HashError:
        return
    assert nixbase32.encode(raw) == text


@pytest.mark.parametrize("text", ["e0", "1_", "-1", " 00", "A0", "٠٠", "000", "0", "zz"])
def test_an_invalid_text_is_refused(text: str) -> None:
    """Covers omitted letters, characters that int() accepts (signs, underscores), impossible lengths and excess bits."""
    with pytest.raises(HashError):
        nixbase32.decode(text)
