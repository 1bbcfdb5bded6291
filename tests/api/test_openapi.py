"""The OpenAPI document has all that the handlers have, and nothing else. That it is true is tested in e2e."""

import ast
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st

import api
from api.errors import ROWS
from api.factory import create_app
from api.openapi import SCHEMAS, STORE_PATH
from api.responses.archives import ARCHIVES
from api.responses.base import EXPOSED_HEADERS
from api.responses.formats import FORMATS
from narcore.binarycache import BinaryCache
from narcore.formats.narinfo import NarInfo
from narcore.formats.nixhash import NixHash
from narcore.formats.storepath import is_base_name
from narcore.lookup.pathinfo import PathInfo, Trust
from narcore.settings import Settings
from narcore.stores.memory import MemoryStore
from tests.builders import binary_cache, hash_part

FILES = binary_cache({"x-1.0": {"a": b"a"}})
STORE_DIR = "/nix/store/"


def client_of(settings: Settings) -> FlaskClient:
    return create_app(settings, BinaryCache([MemoryStore(FILES)])).test_client()


@pytest.fixture
def client() -> Iterator[FlaskClient]:
    with client_of(Settings(metrics=True)) as client:
        yield client


def document(client: FlaskClient, **asked: Any) -> dict[str, Any]:
    answer = client.get("/openapi.json", **asked)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/json")
    found: dict[str, Any] = answer.get_json()
    return found


def test_every_url_of_ours_is_in_it(client: FlaskClient) -> None:
    rules = {rule.rule for rule in client.application.url_map.iter_rules()} - {"/-/static/<name>"}
    paths = document(client)["paths"]
    assert {path for path in paths if "{" not in path} == rules
    assert {path.partition("{")[0] for path in paths if "{" in path} == {STORE_DIR, f"/unpack{STORE_DIR}"}
    with client_of(Settings()) as without_metrics:
        assert "/metrics" not in document(without_metrics)["paths"]


def test_every_parameter_that_is_read_is_in_it(client: FlaskClient) -> None:
    root = Path(api.__file__ or "").parent
    sources = [path for part in ("handlers", "responses", "view") for path in (root / part).glob("**/*.py")]
    read = {name for source in sources for name in _names_in_queries(ast.parse(source.read_text()))}
    documented = {
        parameter["name"]
        for item in document(client)["paths"].values()
        for parameter in item["get"]["parameters"]
        if parameter.get("in") == "query"
    }
    assert documented == read - {"v"}  # the version of a static file: for our own pages


def _names_in_queries(tree: ast.AST) -> Iterator[str]:
    """The x of "x" in request.args and of request.args.get("x"); a query that was handed on is called so."""
    for node in ast.walk(tree):
        match node:
            case ast.Compare(left=ast.Constant(str(name)), ops=[ast.In()], comparators=[queried]) if _is_query(queried):
                yield name
            case ast.Call(func=ast.Attribute(value=queried, attr="get"), args=[ast.Constant(str(name)), *_]) if (
                _is_query(queried)
            ):
                yield name


def _is_query(node: ast.expr) -> bool:
    return ast.unparse(node).rpartition(".")[2] in ("args", "query")


def test_formats_errors_and_headers_are_those_of_the_handlers(client: FlaskClient) -> None:
    found = document(client)
    root = found["paths"][f"{STORE_DIR}{{storePath}}/"]["get"]
    formats = next(parameter for parameter in root["parameters"] if parameter.get("name") == "format")
    assert formats["schema"]["enum"] == list(FORMATS)
    media_types = {archive.media_type for archive in ARCHIVES.values()}
    assert root["responses"]["200"]["content"].keys() == {"text/html", "application/json"} | media_types
    errors = found["components"]["responses"]
    assert errors.keys() == {str(row.status) for row in ROWS.values()}
    assert all(row.error in errors[str(row.status)]["description"] for row in ROWS.values())
    assert found["components"]["headers"].keys() == set(EXPOSED_HEADERS)


def test_the_schema_of_a_narinfo_has_its_fields() -> None:
    parsed = NarInfo.parse(FILES[f"{hash_part('x-1.0')}.narinfo"])
    full = replace(parsed, deriver=f"{hash_part('x')}-x", ca="x", file_hash=NixHash("sha256", bytes(32)), file_size=1)
    schema: Any = SCHEMAS["NarInfo"]
    store = MemoryStore({})
    assert PathInfo(full, store, Trust.SIGNATURE).to_json().keys() == schema["properties"].keys()
    least = PathInfo(replace(parsed, file_hash=None, file_size=None), store).to_json()
    assert least.keys() == set(schema["required"])
    assert {*Trust} - {Trust.UNCHECKED} == set(schema["properties"]["trustedFor"]["enum"])


def test_it_may_be_kept_for_a_while(client: FlaskClient) -> None:
    got = client.get("/openapi.json")
    assert got.headers["Cache-Control"] == "public, max-age=300"
    assert client.get("/openapi.json", headers={"If-None-Match": got.headers["ETag"]}).status_code == 304
    assert client.post("/openapi.json").status_code == 405


def test_where_it_is_served_and_what_is_set_is_in_it() -> None:
    with client_of(Settings(domain="nar.test", max_response=12345)) as client:
        found = document(client, environ_overrides={"SCRIPT_NAME": "/prod"})
    assert found["servers"] == [{"url": "/prod"}]
    assert "nar.test" in found["info"]["description"]
    assert "12345" in found["info"]["description"]


@given(st.text("a.-+_?=Z/ ", min_size=1, max_size=6) | st.integers(205, 220).map("x".__mul__))
def test_the_names_of_its_store_paths_are_those_that_there_can_be(name: str) -> None:
    base_name = f"{hash_part('x')}-{name}"
    assert (re.fullmatch(STORE_PATH["schema"]["pattern"], base_name) is not None) is is_base_name(base_name)
