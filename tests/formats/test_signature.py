import subprocess
import sys
from base64 import b64decode, b64encode
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narcore.errors import FormatError
from narcore.formats.signature import PublicKey, SecretKey, Signature, parse_public_keys

# RFC 8032, section 7.1, test 2.
SEED = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
PUBLIC = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
SIGNATURE = bytes.fromhex(
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)
KEY = SecretKey("test-1", SEED)


def test_signatures_are_those_of_rfc_8032() -> None:
    assert KEY.public_key == PublicKey("test-1", PUBLIC)
    assert KEY.sign(b"\x72") == Signature("test-1", SIGNATURE)
    assert KEY.public_key.verify(b"\x72", Signature("test-1", SIGNATURE))


def test_a_wrong_signature_key_or_name_does_not_verify() -> None:
    key, signature = KEY.public_key, KEY.sign(b"message")
    flipped = Signature("test-1", bytes([signature.sig[0] ^ 1]) + signature.sig[1:])
    assert key.verify(b"message", signature)
    assert not key.verify(b"massage", signature)
    assert not key.verify(b"message", flipped)
    assert not SecretKey.generate("test-1").public_key.verify(b"message", signature)
    for name in ("test-2", "test", "TEST-1", "test-1\u200b"):
        assert not PublicKey(name, key.key).verify(b"message", signature)


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=64, max_size=64), st.binary(max_size=40))
def test_random_bytes_never_verify(key: bytes, sig: bytes, message: bytes) -> None:
    try:
        public = PublicKey("x", key)
    except FormatError:
        return
    assert not public.verify(message, Signature("x", sig))


def test_keys_and_signatures_are_written_and_read_as_text() -> None:
    signature = KEY.sign(b"x")
    assert str(signature) == f"test-1:{b64encode(signature.sig).decode()}"
    assert Signature.parse(str(signature)) == signature
    assert str(KEY.public_key) == f"test-1:{b64encode(PUBLIC).decode()}"
    assert PublicKey.parse(str(KEY.public_key)) == KEY.public_key
    assert KEY.to_text() == f"test-1:{b64encode(SEED + PUBLIC).decode()}"
    assert SecretKey.parse(KEY.to_text()) == KEY


def test_generated_keys_differ_and_are_read_back() -> None:
    one, other = SecretKey.generate("a"), SecretKey.generate("a")
    assert one != other
    assert SecretKey.parse(one.to_text()) == one


def test_a_secret_key_is_not_shown() -> None:
    for shown in (str(KEY), repr(KEY), f"{KEY}"):
        assert "test-1" in shown
        assert b64encode(SEED).decode()[:8] not in shown
        assert repr(SEED)[2:-1] not in shown


GOOD = [(Signature, str(KEY.sign(b"x"))), (PublicKey, str(KEY.public_key)), (SecretKey, KEY.to_text())]


@pytest.mark.parametrize(("kind", "good"), GOOD, ids=["signature", "public key", "secret key"])
def test_invalid_text_is_refused(
    kind: type[Signature | PublicKey | SecretKey], good: str, request: pytest.FixtureRequest
) -> None:
    code = good.removeprefix("test-1:")
    raw = b64decode(code)
    names = ["", " ", "a b", "a\n", "\ta", "a\0", "a\x7f"]
    codes = [
        "",
        code[:-1],
        code + "=",
        f" {code}",
        f"{code}\n",
        f"\u00e9{code}",
        f"x:{code}",
        "!" + code,
        b64(raw[:-1]),
        b64(raw + b"\0"),
    ]
    for text in ["", "x", code, *(f"{name}:{code}" for name in names), *(f"x:{other}" for other in codes)]:
        with pytest.raises(FormatError) as caught:
            kind.parse(text)
        assert caught.value.where == request.node.callspec.id, text
    assert kind.parse(f"x:{code}") == replace(kind.parse(good), name="x")


def b64(raw: bytes) -> str:
    return b64encode(raw).decode()


# The list in libsodium's ge25519_has_small_order (crypto_core/ed25519/ref10); the last byte also contains the sign.
WEAK_KEYS = [
    "00" * 32,
    "01" + "00" * 31,
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "ec" + "ff" * 30 + "7f",
    "ed" + "ff" * 30 + "7f",
    "ee" + "ff" * 30 + "7f",
]


@pytest.mark.parametrize("text", WEAK_KEYS)
def test_a_weak_key_is_refused(text: str) -> None:
    """With the first of these keys, OpenSSL accepts a signature of zeros for a fraction of all messages."""
    key = bytes.fromhex(text)
    for encoding in (key, key[:-1] + bytes([key[-1] ^ 0x80])):
        with pytest.raises(FormatError, match="weak"):
            PublicKey("x", encoding)


def test_a_secret_key_with_a_wrong_public_key_is_refused() -> None:
    with pytest.raises(FormatError):
        SecretKey.parse(f"x:{b64(SEED + bytes(32))}")


def test_public_keys_are_separated_by_white_space() -> None:
    other = SecretKey.generate("b").public_key
    assert parse_public_keys(f"\n {KEY.public_key}\t{other} \n") == (KEY.public_key, other)
    assert parse_public_keys(" ") == ()
    with pytest.raises(FormatError):
        parse_public_keys(f"{other} rubbish")


@given(st.text() | st.text("x:A=+/", min_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    for kind in (Signature, PublicKey):
        try:
            parsed = kind.parse(text)
        except FormatError:
            continue
        assert kind.parse(str(parsed)) == parsed


def test_cryptography_is_imported_at_first_use() -> None:
    program = "import sys, narcore.formats.narinfo; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
