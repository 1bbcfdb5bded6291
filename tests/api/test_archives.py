"""``?format=tar``, ``tar.zst``, ``zip`` and ``nar``, over WSGI."""

import io
import random
import tarfile
import zipfile
from collections.abc import Iterator

import pytest
import zstandard
from flask.testing import FlaskClient

from api.factory import create_app
from narcore.binarycache import BinaryCache
from narcore.errors import NarcoreError
from narcore.settings import Settings
from narcore.stores.memory import MemoryStore
from tests.builders import Tree, binary_cache, exe, hash_part, link, nar

SHARE: Tree = {"noise": random.Random(1).randbytes(1_000_000)}
TREE: dict[str, Tree] = {"bin": {"run": exe(b"#!"), "also": link("run")}, "share": SHARE}
ROOT = f"/nix/store/{hash_part('x-1.0')}-x-1.0"
FILES = binary_cache({"x-1.0": TREE})


@pytest.fixture
def client() -> Iterator[FlaskClient]:
    with create_app(Settings(), BinaryCache([MemoryStore(FILES)])).test_client() as client:
        yield client


def names(format_name: str, body: bytes) -> list[str]:
    if format_name == "zip":
        return zipfile.ZipFile(io.BytesIO(body)).namelist()
    if format_name == "tar.zst":
        body = zstandard.ZstdDecompressor().decompressobj().decompress(body)
    return [member.name for member in tarfile.open(fileobj=io.BytesIO(body))]


@pytest.mark.parametrize(
    ("format_name", "media_type"),
    [("tar", "application/x-tar"), ("tar.zst", "application/zstd"), ("zip", "application/zip")],
)
def test_a_directory_is_sent_as_an_archive(client: FlaskClient, format_name: str, media_type: str) -> None:
    response = client.get(f"{ROOT}/bin/?format={format_name}")
    assert response.status_code == 200
    assert response.headers["Content-Type"] == media_type
    assert response.headers["Content-Disposition"] == f'attachment; filename="bin.{format_name}"'
    assert "immutable" in response.headers["Cache-Control"]
    assert response.headers["Accept-Ranges"] == "none"
    assert [name.rstrip("/") for name in names(format_name, response.data)] == ["bin", "bin/also", "bin/run"]


def test_every_kind_of_node_has_an_archive_with_or_without_a_slash(client: FlaskClient) -> None:
    expectations: dict[str, Tree] = {
        "": TREE,
        "/": TREE,
        "/share": SHARE,
        "/bin/also": link("run"),
        "/bin/run": exe(b"#!"),
    }
    for path, expected in expectations.items():
        response = client.get(f"{ROOT}{path}?format=nar")
        assert response.data == nar(expected)
        assert response.headers["Content-Type"] == "application/x-nix-nar"


def test_an_archive_is_named_after_its_node(client: FlaskClient) -> None:
    response = client.get(f"{ROOT}/?format=nar")
    assert response.headers["Content-Disposition"] == f'attachment; filename="{ROOT.rpartition("/")[2]}.nar"'


def test_an_archive_supports_conditions_and_head_but_no_ranges(client: FlaskClient) -> None:
    etags = {
        client.head(f"{ROOT}/bin/?format={name}").headers["ETag"] for name in ("tar", "tar.zst", "zip", "nar", "json")
    }
    assert len(etags) == 5
    head = client.head(f"{ROOT}/bin?format=tar")
    assert (head.status_code, head.data) == (200, b"")
    assert "Content-Length" not in head.headers  # the length of the archive is not known in advance
    again = client.get(f"{ROOT}/bin?format=tar", headers={"If-None-Match": head.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")
    whole = client.get(f"{ROOT}/bin?format=tar", headers={"Range": "bytes=0-9"})
    assert (whole.status_code, len(whole.data)) == (200, 10240)


def test_the_error_for_an_unknown_format_lists_the_formats(client: FlaskClient) -> None:
    response = client.get(f"{ROOT}/bin?format=rar")
    assert response.status_code == 400
    for name in ("json", "tar", "tar.zst", "zip", "nar"):
        assert name in response.text


@pytest.mark.parametrize("format_name", ["tar", "tar.zst", "zip", "nar"])
def test_an_early_failure_is_an_error_response_and_a_later_failure_cuts_the_body(format_name: str) -> None:
    (url,) = _nar_of(FILES)
    other = binary_cache({"x-1.0": {**TREE, "share": {"noise": random.Random(2).randbytes(1_000_000)}}})
    (other_url,) = _nar_of(other)
    path = f"{ROOT}/?format={format_name}"
    with create_app(Settings(), BinaryCache([MemoryStore({**FILES, url: b""})])).test_client() as client:
        assert client.get(path).status_code == 502
    app = create_app(Settings(), BinaryCache([MemoryStore({**FILES, url: other[other_url]})]))
    with app.test_client() as client, pytest.raises(NarcoreError):
        client.get(path, buffered=True)


def _nar_of(files: dict[str, bytes]) -> list[str]:
    return [name for name in files if name.startswith("nar/")]
