"""Content addresses as values; ``tests/lookup/test_content_addresses.py`` compares them with a real Nix."""

from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narcore.errors import FormatError, StorePathError
from narcore.formats.contentaddress import ContentAddress, Method, is_address_of
from narcore.formats.narinfo import NarInfo
from narcore.formats.nixhash import DIGEST_SIZES, NixHash
from narcore.formats.storepath import StorePath

DIGEST = bytes(range(32))
SHA256 = NixHash("sha256", DIGEST)
HASH = "7rjj86a15146cq1d3qy068lml7n7ykzm"

# Printed by `nix store add-path`, `nix store add-file` and `nix-store --add-fixed` of Nix 2.8.
WRITTEN = {
    "fixed:r:sha256:1j9vw22xn3yl90jf7m88069ldvzqg18cqj0dc58ffl015hb462bh": "6zh6243dhj247d86p6sa94r7441ccg9f-tree",
    "fixed:sha256:1m9j6hyd9jwnj2xvbf275x66wls881c21zrxrbwl4i5r2s3im4cb": "kd7g1ylnrqv0c77c0jcdnfj0y2mchdnw-flat",
    "fixed:sha1:br2mdzkrwi82l12zk09klk94ya6icv04": "dfavss3ayk3g7v1r9jfkd49l9qmhq2pf-f",
    "fixed:r:sha1:16va7yxy5x28g8px5rxxx325b5yf4iz4": "dybyikcidnbi2gjqqj6i541s1ajjzlgd-d",
    "fixed:r:md5:688pwy365v258fq1sy6v7v6mxr": "6myispd5ncrz2d3naalc1bmznn1gd0ab-d",
}


@pytest.mark.parametrize(("text", "base_name"), WRITTEN.items())
def test_store_paths_are_those_of_nix(text: str, base_name: str) -> None:
    address = ContentAddress.parse(text)
    assert str(address) == text
    assert address.store_path(base_name[33:]).base_name == base_name


def test_every_notation_except_sri_is_read() -> None:
    for digits in (SHA256.nix32, DIGEST.hex(), b64encode(DIGEST).decode()):
        assert ContentAddress.parse(f"fixed:r:sha256:{digits}") == ContentAddress("nar", SHA256)
    with pytest.raises(FormatError):
        ContentAddress.parse(f"fixed:r:{SHA256.to_sri()}")


HEX = DIGEST.hex()
WRONG = [
    "",
    "fixed",
    "fixed:",
    "fixed:r:",
    "text:",
    "fixed:sha256",
    "fixed:sha256:",
    "fixed:r:sha256:",
    HEX,
    f"sha256:{HEX}",
    f"r:sha256:{HEX}",
    f"fixed:{HEX}",
    f"fixed:r:{HEX}",
    f"fixed:out:sha256:{HEX}",
    f"fixed:r:r:sha256:{HEX}",
    f"fixed:text:sha256:{HEX}",
    f"fixed:git:sha1:{HEX[:40]}",
    f"fixed:blake3:{HEX}",
    f"fixed:r:blake3:{HEX}",
    f"fixed:r:SHA256:{HEX}",
    f"Fixed:r:sha256:{HEX}",
    f"text:r:sha256:{HEX}",
    f"text:sha1:{HEX[:40]}",
    f"nar:sha256:{HEX}",
    f" fixed:r:sha256:{HEX}",
    f"fixed:r:sha256:{HEX} ",
    f"fixed:r:sha256: {HEX}",
    f"fixed:r:sha256:{HEX}\n",
    f"fixed:r:sha256:{HEX[:-1]}",
    f"fixed:r:sha256:{HEX}0",
    f"fixed:r:sha256:sha256:{HEX}",
    f"fixed:r:sha256:{'z' * 52}",
    f"fixed:r:sha512:{HEX}",
    f"fixed:r:sha256:{'x' * 1_000_000}",
]


@pytest.mark.parametrize("text", WRONG, ids=lambda text: text[:40])
def test_an_invalid_address_is_refused(text: str) -> None:
    with pytest.raises(FormatError) as caught:
        ContentAddress.parse(text)
    assert caught.value.where == "content address"
    assert len(str(caught.value)) < 200


def test_a_text_must_be_hashed_by_sha256() -> None:
    with pytest.raises(FormatError, match="sha512"):
        ContentAddress("text", NixHash("sha512", bytes(64)))


@pytest.mark.parametrize(
    ("method", "algorithm", "refers", "to_itself"),
    [
        ("flat", "sha256", True, False),
        ("flat", "sha256", False, True),
        ("nar", "sha1", True, False),
        ("nar", "sha512", False, True),
        ("text", "sha256", False, True),
    ],
)
def test_impossible_references_are_refused(method: Method, algorithm: str, refers: bool, to_itself: bool) -> None:
    address = ContentAddress(method, NixHash(algorithm, bytes(DIGEST_SIZES[algorithm])))
    with pytest.raises(FormatError, match="references"):
        address.store_path("x", [f"{HASH}-y"] if refers else [], self_reference=to_itself)
    assert address.store_path("x").name == "x"


def test_every_part_changes_the_store_path() -> None:
    """Addresses that differ in one part have different store paths, and no part can be mistaken for another part."""
    nar, text = ContentAddress("nar", SHA256), ContentAddress("text", SHA256)
    paths = [
        nar.store_path("x"),
        nar.store_path("y"),
        nar.store_path("x", store_dir="/gnu/store"),
        nar.store_path("x", self_reference=True),
        nar.store_path("x", [f"{HASH}-a"]),
        nar.store_path("x", [f"{HASH}-a"], self_reference=True),
        nar.store_path("x", [f"{HASH}-a", f"{HASH}-b"]),
        text.store_path("x"),
        text.store_path("x", [f"{HASH}-a"]),
        ContentAddress("flat", SHA256).store_path("x"),
        ContentAddress("nar", NixHash("sha256", bytes(32))).store_path("x"),
    ]
    assert len({path.hash_part for path in paths}) == len(paths)
    assert nar.store_path("x", [f"{HASH}-b", f"{HASH}-a", f"{HASH}-b"]) == nar.store_path(
        "x", [f"{HASH}-a", f"{HASH}-b"]
    )


@pytest.mark.parametrize("name", ["", "a:b", "a/b", "..", "x" * 212])
def test_an_invalid_name_is_refused(name: str) -> None:
    with pytest.raises(StorePathError):
        ContentAddress("nar", SHA256).store_path(name)


texts = st.text() | st.lists(
    st.sampled_from(
        ["fixed:", "r:", "text:", "git:", *(f"{name}:" for name in DIGEST_SIZES), "sha256-", HEX, SHA256.nix32]
    )
).map("".join)


@given(texts)
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        address = ContentAddress.parse(text)
    except FormatError:
        return
    assert ContentAddress.parse(str(address)) == address


@given(texts.filter(lambda text: text.isprintable() and text))
def test_an_arbitrary_ca_does_not_match_the_path(text: str) -> None:
    """``is_address_of`` never raises, and no generated CA is the address of the path."""
    info = NarInfo(
        store_path=StorePath("/nix/store", HASH, "x"), url="x", compression="none", nar_hash=SHA256, nar_size=1, ca=text
    )
    assert not is_address_of(info)
