"""The public names of ``narcore``, which other programs import."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import narcore
from narcore import BinaryCache, Kind, write_binary_cache
from narcore.errors import InOtherStorePath, NoSuchNode, NotADirectory, SettingsError, StorePathError
from narcore.lookup.pathinfo import Trust
from tests import ROOT


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    directory = tmp_path / "tree"
    (directory / "share").mkdir(parents=True)
    (directory / "share" / "file").write_bytes(b"0123456789")
    (directory / "link").symlink_to("share/file")
    (directory / "out").symlink_to("/nix/store/" + "0" * 32 + "-other/x")
    return directory


@pytest.fixture
def cache(tmp_path: Path, tree: Path) -> Iterator[tuple[BinaryCache, str]]:
    (store_path,) = write_binary_cache(tmp_path / "cache", {"tree-1": tree})
    with BinaryCache.connect((tmp_path / "cache").as_uri()) as opened:
        yield opened, str(store_path)


@pytest.mark.parametrize("name", narcore.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(narcore, name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        narcore.nothing  # noqa: B018


def test_importing_the_package_alone_loads_none_of_its_modules() -> None:
    program = "import sys, narcore; print(*sorted(name for name in sys.modules if name.startswith('narcore.')))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["narcore.version"]


def test_a_file_is_read_by_its_path_and_links_are_followed(cache: tuple[BinaryCache, str]) -> None:
    opened, store_path = cache
    nar = opened.open(opened.path_info(store_path))
    assert b"".join(nar.read("share/file")) == b"0123456789"
    assert b"".join(nar.read("link", 2, 5)) == b"234"
    assert nar.node("link").name == "file"
    assert nar.node("").kind is Kind.DIRECTORY


def test_a_hash_is_enough_to_find_a_store_path(cache: tuple[BinaryCache, str]) -> None:
    opened, store_path = cache
    hash_part = store_path.removeprefix("/nix/store/")[:32]
    assert opened.path_info(hash_part) == opened.path_info(store_path)


@pytest.mark.parametrize("path", ["hello", "", "/nix/store/hello", "0" * 31, "/nix/store"])
def test_an_invalid_store_path_is_refused(cache: tuple[BinaryCache, str], path: str) -> None:
    with pytest.raises(StorePathError):
        cache[0].path_info(path)


def test_a_directory_lists_its_entries_in_byte_order(cache: tuple[BinaryCache, str]) -> None:
    opened, store_path = cache
    nar = opened.open(opened.path_info(store_path))
    assert [node.name for node in nar.children()] == ["link", "out", "share"]
    assert [(node.name, node.size) for node in nar.children("share/")] == [("file", 10)]


@pytest.mark.parametrize(
    ("path", "error"), [("missing", NoSuchNode), ("share/file/x", NotADirectory), ("out", InOtherStorePath)]
)
def test_a_path_without_a_file_raises_an_error_that_says_why(
    cache: tuple[BinaryCache, str], path: str, error: type[Exception]
) -> None:
    opened, store_path = cache
    with pytest.raises(error) as raised:
        opened.open(opened.path_info(store_path)).read(path)
    if isinstance(raised.value, InOtherStorePath):
        assert raised.value.path == "/nix/store/" + "0" * 32 + "-other/x"


def test_the_entries_of_a_file_are_refused(cache: tuple[BinaryCache, str]) -> None:
    opened, store_path = cache
    with pytest.raises(NotADirectory):
        list(opened.open(opened.path_info(store_path)).children("link"))


def test_verify_raises_for_a_nar_with_another_hash(cache: tuple[BinaryCache, str], tmp_path: Path) -> None:
    opened, store_path = cache
    info = opened.path_info(store_path)
    opened.verify(info)
    (file,) = (tmp_path / "cache" / "nar").iterdir()
    file.write_bytes(file.read_bytes()[:-4] + b"abcd")
    with pytest.raises(narcore.NarcoreError):
        opened.verify(info)


def test_connect_reads_no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NAR_CACHE_URL", "not a url")
    with BinaryCache.connect(tmp_path.as_uri(), cache_dir=tmp_path / "nars") as opened:
        assert [each.url for each in opened.substituters] == [tmp_path.as_uri()]
        assert opened.disk_usage() is not None
    with BinaryCache.connect(tmp_path.as_uri()) as opened:
        assert opened.disk_usage() is None


def test_connect_refuses_an_invalid_store_url() -> None:
    with pytest.raises(SettingsError):
        BinaryCache.connect("ftp://example.org")


def test_connect_checks_signatures_with_the_given_keys(tmp_path: Path, tree: Path) -> None:
    (store_path,) = write_binary_cache(tmp_path / "cache", {"tree-1": tree})
    with BinaryCache.connect((tmp_path / "cache").as_uri(), trusted_public_keys="") as opened:
        assert opened.path_info(str(store_path)).trust is Trust.UNCHECKED
