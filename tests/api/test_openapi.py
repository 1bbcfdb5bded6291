"""The OpenAPI document describes exactly the URLs and parameters of the handlers. tests/e2e checks it against a server."""

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


def document(client: FlaskClient, **options: Any) -> dict[str, Any]:
    answer = client.get("/openapi.json", **options)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/json")
    content: dict[str, Any] = answer.get_json()
    return content


def test_every_url_is_documented(client: FlaskClient) -> None:
    rules = {rule.rule for rule in client.application.url_map.iter_rules()} - {"/-/static/<name>"}
    paths = document(client)["paths"]
    assert {path for path in paths if "{" not in path} == rules
    assert {path.partition("{")[0] for path in paths if "{" in path} == {STORE_DIR, f"/unpack{STORE_DIR}"}
    with client_of(Settings()) as without_metrics:
        assert "/metrics" not in document(without_metrics)["paths"]


def test_every_query_parameter_is_documented(client: FlaskClient) -> None:
    root = Path(api.__file__ or "").parent
    sources = [path for part in ("handlers", "responses", "view") for path in (root / part).glob("**/*.py")]
    read = {name for source in sources for name in _names_in_queries(ast.parse(source.read_text()))}
    documented = {
        parameter["name"]
        for item in document(client)["paths"].values()
        for parameter in item["get"]["parameters"]
        if parameter.get("in") == "query"
    }
    assert documented == read - {"v"}  # the version of a static file, which only pages use


def _names_in_queries(tree: ast.AST) -> Iterator[str]:
    """Yield the x of ``"x" in request.args`` and ``request.args.get("x")``. A function argument ``query`` counts as well."""
    for node in ast.walk(tree):
        match node:
            case ast.Compare(left=ast.Constant(str(name)), ops=[ast.In()], comparators=[operand]) if _is_query(operand):
                yield name
            case ast.Call(func=ast.Attribute(value=operand, attr="get"), args=[ast.Constant(str(name)), *_]) if (
                _is_query(operand)
            ):
                yield name


def _is_query(node: ast.expr) -> bool:
    return ast.unparse(node).rpartition(".")[2] in ("args", "query")


def test_the_formats_errors_and_headers_of_the_handlers_are_documented(client: FlaskClient) -> None:
    content = document(client)
    root = content["paths"][f"{STORE_DIR}{{storePath}}/"]["get"]
    formats = next(parameter for parameter in root["parameters"] if parameter.get("name") == "format")
    assert formats["schema"]["enum"] == list(FORMATS)
    media_types = {archive.media_type for archive in ARCHIVES.values()}
    assert root["responses"]["200"]["content"].keys() == {"text/html", "application/json"} | media_types
    errors = content["components"]["responses"]
    assert errors.keys() == {str(row.status) for row in ROWS.values()}
    assert all(row.error in errors[str(row.status)]["description"] for row in ROWS.values())
    assert content["components"]["headers"].keys() == set(EXPOSED_HEADERS)


def test_the_schema_of_a_narinfo_has_the_fields_of_its_json() -> None:
    parsed = NarInfo.parse(FILES[f"{hash_part('x-1.0')}.narinfo"])
    full = replace(parsed, deriver=f"{hash_part('x')}-x", ca="x", file_hash=NixHash("sha256", bytes(32)), file_size=1)
    schema: Any = SCHEMAS["NarInfo"]
    store = MemoryStore({})
    assert PathInfo(full, store, Trust.SIGNATURE).to_json().keys() == schema["properties"].keys()
    minimal = PathInfo(replace(parsed, file_hash=None, file_size=None), store).to_json()
    assert minimal.keys() == set(schema["required"])
    assert {*Trust} - {Trust.UNCHECKED} == set(schema["properties"]["trustedFor"]["enum"])


def test_the_document_may_be_cached_for_five_minutes(client: FlaskClient) -> None:
    got = client.get("/openapi.json")
    assert got.headers["Cache-Control"] == "public, max-age=300"
    assert client.get("/openapi.json", headers={"If-None-Match": got.headers["ETag"]}).status_code == 304
    assert client.post("/openapi.json").status_code == 405


def test_the_document_has_script_name_and_settings() -> None:
    with client_of(Settings(domain="nar.test", max_response=12345)) as client:
        content = document(client, environ_overrides={"SCRIPT_NAME": "/prod"})
    assert content["servers"] == [{"url": "/prod"}]
    assert "nar.test" in content["info"]["description"]
    assert "12345" in content["info"]["description"]


@given(st.text("a.-+_?=Z/ ", min_size=1, max_size=6) | st.integers(205, 220).map("x".__mul__))
def test_the_pattern_of_store_paths_matches_valid_names_only(name: str) -> None:
    base_name = f"{hash_part('x')}-{name}"
    assert (re.fullmatch(STORE_PATH["schema"]["pattern"], base_name) is not None) is is_base_name(base_name)
