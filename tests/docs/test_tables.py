"""The tables of the documents match the program: each setting, URL, command and exit code has exactly one row. Links work."""

import os
import re
from pathlib import Path

import pytest

from api.factory import create_app
from api.openapi import document as openapi_document
from narcore import settings as settings_module
from narcore.settings import NAMES, Settings
from narserve.program import MODULES
from narserve.terminal.exits import EXIT_CODES
from tests import ROOT
from tests.docs.documents import Document, code, documents
from tests.e2e.fronts import environment

CONFIGURATION = Document(ROOT / "docs" / "configuration.md")
HTTP_API = Document(ROOT / "docs" / "http-api.md")

# Settings whose names do not begin with NAR_, since other programs use the same names.
OTHER_SETTINGS = {"PORT", "HTTP_ADDR", "DOMAIN", "NIX_CACHE_URL"}

# Not part of the OpenAPI document: files that nar-serve's pages use.
UNDOCUMENTED = "/-/static/<name>"

# The text in the table for query parameters of all store paths, both files and directories.
OF_STORE_PATHS = "store paths"


def rows(heading: str) -> dict[str, tuple[str, str]]:
    """Return the settings in a table: default and meaning, by name."""
    return {code(name)[0]: (default, meaning) for name, default, meaning in CONFIGURATION.rows(heading)}


def test_each_setting_has_one_row() -> None:
    names = [code(row[0]) for row in CONFIGURATION.rows("Settings")]
    assert all(len(each) == 1 for each in names)
    assert sorted(name for [name] in names) == sorted(NAMES | OTHER_SETTINGS)


def test_settings_that_are_read_have_a_row() -> None:
    """Also finds settings that are missing in NAMES."""
    read = set(re.findall(r'"((?:NAR|NIX)_[A-Z_]+|PORT|HTTP_ADDR|DOMAIN)"', Path(settings_module.__file__).read_text()))
    assert read <= rows("Settings").keys()


def test_each_variable_of_a_command_has_a_row() -> None:
    source = "".join(path.read_text() for path in sorted((ROOT / "narserve" / "commands").glob("*.py")))
    read = set(re.findall(r'envvar="([A-Z_]+)"', source)) | set(re.findall(r"\[env: ([A-Z_]+)", source))
    assert read - rows("Settings").keys() == rows("Settings of commands").keys()


def test_the_table_shows_the_defaults() -> None:
    settings = Settings.from_environ({"HOME": "/home/x"})
    table = {name: code(default)[0] if code(default) else default for name, (default, _) in rows("Settings").items()}
    assert settings.port == int(table["PORT"])
    assert settings.host == ""
    assert settings.cache_urls == (table["NAR_CACHE_URL"],)
    assert settings.cache_strategy == table["NAR_CACHE_STRATEGY"]
    assert settings.verify == table["NAR_VERIFY"]
    assert f"{settings.cache_size.percent}%" == table["NAR_CACHE_SIZE"]
    assert settings.workers == int(table["NAR_WORKERS"])
    assert settings.threads == int(table["NAR_THREADS"])
    assert settings.stop_seconds == int(table["NAR_STOP_SECONDS"])
    assert settings.log_format == table["NAR_LOG_FORMAT"]
    assert settings.mount_deadline == int(table["NAR_MOUNT_DEADLINE"])
    assert settings.max_fills == 2 * (os.cpu_count() or 1)
    assert [settings.metrics, settings.mount_early, settings.tier_write] == [
        table[name] == "on" for name in ("NAR_METRICS", "NAR_MOUNT_EARLY", "NAR_TIER_WRITE")
    ]
    for name, value in {
        "DOMAIN": settings.domain,
        "NAR_MAX_CONNECTIONS": settings.max_connections,
        "NAR_MAX_NAR_SIZE": settings.max_nar_size,
        "NAR_MAX_RESPONSE": settings.max_response,
        "NAR_OFFLOAD_URL": settings.offload_url,
        "NAR_TIER_URL": settings.tier_url,
        "NAR_TIER_PUBLIC_KEYS": settings.tier_public_keys,
        "NAR_TIER_SECRET_KEY": settings.tier_secret_key,
        "NAR_TRUSTED_PROXIES": settings.trusted_proxies,
    }.items():
        assert (not value, table[name]) == (True, "none"), name


def test_the_readme_shows_the_same_defaults() -> None:
    readme = {code(row[0])[0]: row[1] for row in Document(ROOT / "README.md").rows("Configuration")}
    assert len(readme) == 5
    for name in ("NAR_CACHE_URL", "NAR_CACHE_DIR", "NAR_CACHE_SIZE"):
        assert readme[name] == rows("Settings")[name][0]


@pytest.fixture
def settings() -> Settings:
    return Settings.from_environ({"NAR_METRICS": "on", "NAR_CACHE_DIR": "off", "NAR_CACHE_URL": "file:///nowhere"})


def test_each_url_has_one_row(settings: Settings) -> None:
    urls = [url for row in HTTP_API.rows("URLs") for url in code(row[0])]
    routes = {str(rule) for rule in create_app(settings).url_map.iter_rules()}
    documented = set(openapi_document(settings, ["/nix/store"], "")["paths"])
    assert len(urls) == len(set(urls))
    assert set(urls) == documented | {UNDOCUMENTED}
    assert routes <= set(urls)


def test_each_query_parameter_has_one_row(settings: Settings) -> None:
    table = {code(row[0])[0]: row[1] for row in HTTP_API.rows("Query parameters")}
    used: dict[str, set[str]] = {}
    for path, item in openapi_document(settings, ["/nix/store"], "")["paths"].items():
        for parameter in item["get"]["parameters"]:
            if parameter.get("in") == "query":
                used.setdefault(parameter["name"], set()).add(_place(path))
    places = {name: OF_STORE_PATHS if len(where) > 1 else next(iter(where)) for name, where in used.items()}
    assert table == places | {"path": "`/`"}
    source = "".join(path.read_text() for path in sorted((ROOT / "api").rglob("*.py")))
    read = set(re.findall(r'args\.get\("(\w+)"\)', source)) | set(re.findall(r'"(\w+)" in \S*request\.args', source))
    assert read - {"v"} <= table.keys()  # v: the version of a static file, set by the pages


def _place(path: str) -> str:
    if "{" not in path:
        return path
    return "directories" if path.endswith("/") else "files"


def test_each_command_has_one_row() -> None:
    rows = [code(row[0]) for row in Document(ROOT / "docs" / "commands.md").rows("Overview")]
    assert rows == [[name] for name in MODULES]


def test_each_exit_code_has_one_row() -> None:
    page = Document(ROOT / "docs" / "commands.md").text.partition("## Exit codes")[2]
    for number in re.findall(r"(?m)^ +([0-9]+) ", EXIT_CODES):
        assert re.search(rf"(?m)^\|[^|]*\b{number}\b[^|]*\|", page), number


def test_the_readme_has_at_most_130_lines() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


@pytest.mark.parametrize("document", documents(), ids=lambda document: document.name)
def test_link_targets_exist(document: Document) -> None:
    for link in document.links():
        target, _, anchor = link.partition("#")
        path = (document.path.parent / target).resolve() if target else document.path
        assert path.exists(), f"{document.name}: {link}"
        if anchor:
            assert anchor in Document(path).anchors(), f"{document.name}: {link}"


def test_the_readme_links_to_each_page() -> None:
    linked = {link.partition("#")[0] for link in Document(ROOT / "README.md").links()}
    assert {document.name for document in documents()} - {"README.md"} <= linked


def test_no_document_contains_local_paths() -> None:
    names = [str(ROOT), *filter(None, [environment({}).get("PIP_INDEX_URL", "")])]
    for document in documents():
        assert not [name for name in names if name in document.text], document.name


def test_each_picture_is_small_and_used() -> None:
    pictures = {path for path in (ROOT / "docs" / "images").iterdir() if path.stat().st_size < 200_000}
    linked = {(document.path.parent / link).resolve() for document in documents() for link in document.links()}
    assert pictures == set((ROOT / "docs" / "images").iterdir())
    assert pictures <= linked
