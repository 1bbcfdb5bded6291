import pytest
from hypothesis import given
from hypothesis import strategies as st

from narcore.errors import StorePathError
from narcore.formats.storepath import StorePath, check_store_dir, is_base_name, is_hash_part, split_store_path

HASH = "7rjj86a15146cq1d3qy068lml7n7ykzm"
BASE = f"{HASH}-hello-2.12"

GOOD_NAMES = ["hello-2.12", "a", "?", "=", "+", "_", ".x", "..x", "...", "-", ".x-1", "a" * 211, "libstdc++_5?a=b"]
BAD_NAMES = [
    "",
    ".",
    "..",
    ".-x",
    "..-x",
    ".-",
    "a b",
    "a/b",
    "a\n",
    "\u00e9",
    "a%20b",
    "a~",
    "a\0",
    "a" * 212,
    "a:b",
    "\udcff",
]
BAD_HASHES = ["", HASH[:-1], HASH + "0", HASH.upper(), "e" + HASH[1:], "u" + HASH[1:], HASH[:-1] + "\n", "٠" * 32]


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_names_valid_in_nix_are_accepted(name: str) -> None:
    path = StorePath.parse(f"/nix/store/{HASH}-{name}")
    assert path == StorePath("/nix/store", HASH, name) == StorePath.from_base_name(f"{HASH}-{name}")
    assert str(path) == f"/nix/store/{HASH}-{name}"
    assert path.base_name == f"{HASH}-{name}"
    assert is_base_name(path.base_name)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_invalid_in_nix_are_refused(name: str) -> None:
    assert not is_base_name(f"{HASH}-{name}")
    with pytest.raises(StorePathError):
        StorePath.parse(f"/nix/store/{HASH}-{name}")
    with pytest.raises(StorePathError):
        StorePath("/nix/store", HASH, name)


@pytest.mark.parametrize("hash_part", BAD_HASHES)
def test_invalid_hash_parts_are_refused(hash_part: str) -> None:
    assert not is_hash_part(hash_part)
    with pytest.raises(StorePathError):
        StorePath.from_base_name(f"{hash_part}-x")
    with pytest.raises(StorePathError):
        StorePath("/nix/store", hash_part, "x")


def test_a_base_name_is_not_a_hash_part() -> None:
    assert is_hash_part(HASH)
    assert not is_hash_part(BASE)


@pytest.mark.parametrize(
    "text",
    [BASE, f"/nix/store/{HASH}", f"/nix/store/{BASE}/bin", f"/nix/store/{BASE}/", f"/nix/store//{BASE}", f"/x/{BASE}"],
)
def test_parse_accepts_only_a_store_path(text: str) -> None:
    with pytest.raises(StorePathError):
        StorePath.parse(text)


def test_another_store_dir_is_accepted() -> None:
    path = StorePath.parse(f"/gnu/store/{BASE}", store_dir="/gnu/store")
    assert path.store_dir == "/gnu/store"
    assert str(path) == f"/gnu/store/{BASE}"
    assert path != StorePath.from_base_name(BASE)


@pytest.mark.parametrize("text", ["/nix/store", "/s", "/a/b/c d", "/opt/nix/store"])
def test_valid_store_dirs_are_accepted(text: str) -> None:
    assert check_store_dir(text) == text


@pytest.mark.parametrize(
    "text", ["", "/", "nix/store", "/nix/store/", "/nix//store", "/nix/../store", "/./x", "/a\nb", "/a\0"]
)
def test_invalid_store_dirs_are_refused(text: str) -> None:
    with pytest.raises(StorePathError):
        check_store_dir(text)
    with pytest.raises(StorePathError):
        StorePath(text, HASH, "x")


@pytest.mark.parametrize(
    ("below", "rest"),
    [
        ("", ""),
        ("/", ""),
        ("///", ""),
        ("/bin/x", "bin/x"),
        ("//bin//x/", "bin//x/"),
        ("/../other", "../other"),
        ("/\udcff", "\udcff"),
    ],
)
@pytest.mark.parametrize("store_dir", ["/nix/store", "/gnu", "//nix///store/"])
def test_a_path_is_split_into_the_store_path_and_the_rest(store_dir: str, below: str, rest: str) -> None:
    plain = "/gnu" if "gnu" in store_dir else "/nix/store"
    assert split_store_path(f"{store_dir}/{BASE}{below}", plain) == (StorePath.from_base_name(BASE, plain), rest)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/nix/store",
        "/nix/store/",
        f"nix/store/{BASE}",
        f"/nix/stores/{BASE}",
        f"/nix/store/x/{BASE}",
        "/etc/passwd",
        f"/nix/store/../{BASE}",
        "/nix/store/.links/x",
        f"/nix/store/{HASH}",
    ],
)
def test_a_path_that_is_not_in_a_store_path_is_not_split(path: str) -> None:
    with pytest.raises(StorePathError):
        split_store_path(path)


@given(st.text() | st.text("/.-+ab" + HASH).map(lambda text: f"/nix/store/{HASH}{text}"))
def test_any_path_is_split_or_refused(text: str) -> None:
    try:
        path, rest = split_store_path(text)
    except StorePathError:
        return
    assert StorePath.parse(str(path)) == path
    assert text.endswith(rest)
    assert not rest.startswith("/")
