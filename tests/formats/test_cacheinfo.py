import pytest
from hypothesis import given
from hypothesis import strategies as st

from narcore.errors import CacheInfoError
from narcore.formats.cacheinfo import CacheInfo

CASES = {
    "cache.nixos.org": (b"StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 40\n", CacheInfo("/nix/store", True, 40)),
    "another store": (b"StoreDir: /gnu/store\n", CacheInfo("/gnu/store")),
    "empty file with the defaults": (b"", CacheInfo("/nix/store", False, None)),
    "no newline, no space, more space": (
        b"WantMassQuery:1\nPriority:   -5  ",
        CacheInfo(want_mass_query=True, priority=-5),
    ),
    "CRLF": (b"StoreDir: /s\r\nPriority: 1\r\n", CacheInfo("/s", priority=1)),
    "ignored lines": (b"\nno colon here\nX-Other: y\npriority: 3\nWantMassQuery: yes\n", CacheInfo()),
    "the last line counts": (b"Priority: 1\nPriority: 2\n", CacheInfo(priority=2)),
}


@pytest.mark.parametrize(("data", "expected"), CASES.values(), ids=CASES)
def test_a_valid_file_is_read(data: bytes, expected: CacheInfo) -> None:
    assert CacheInfo.parse(data) == expected


@pytest.mark.parametrize(
    ("data", "where"),
    [
        (b"<!DOCTYPE html>\n<title>Sign in: here</title>", ""),
        (b"\n  <html>", ""),
        (b"StoreDir: /nix\xff\n", "offset 14"),
        (b"StoreDir:\n", "field StoreDir"),
        (b"StoreDir: nix/store\n", "field StoreDir"),
        (b"StoreDir: /nix/../etc\n", "field StoreDir"),
        (b"Priority: high\n", "field Priority"),
        (b"Priority: " + b"9" * 5000 + b"\n", "field Priority"),
    ],
)
def test_an_invalid_file_is_refused_with_the_place(data: bytes, where: str) -> None:
    with pytest.raises(CacheInfoError) as caught:
        CacheInfo.parse(data)
    assert caught.value.where == where


def test_the_text_is_that_of_nix() -> None:
    assert CacheInfo().to_text() == "StoreDir: /nix/store\n"
    assert CacheInfo("/s", True, 0).to_text() == "StoreDir: /s\nWantMassQuery: 1\nPriority: 0\n"


def test_an_invalid_store_dir_is_refused_on_construction() -> None:
    with pytest.raises(CacheInfoError):
        CacheInfo("/nix\nPriority: 1")


@given(
    st.binary()
    | st.lists(st.sampled_from([b"StoreDir", b"Priority", b": ", b"1", b"/x", b"\n", b"\xc3"])).map(b"".join)
)
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        info = CacheInfo.parse(data)
    except CacheInfoError:
        return
    assert CacheInfo.parse(info.to_text().encode()) == info
