"""Tests use only the public names of other modules. ruff's SLF001 finds attributes; this module finds imports and patches."""

import ast
from collections.abc import Iterator

import pytest

from tests import ROOT

OURS = ("api", "narcore", "narmount", "narserve", "tests")

# Functions of monkeypatch, unittest.mock and the language that take the name of an attribute as text.
BY_NAME = frozenset({"setattr", "delattr", "getattr", "hasattr", "patch", "object", "attrgetter"})


def is_private(name: str) -> bool:
    last = name.rpartition(".")[2]
    return last.startswith("_") and not last.startswith("__")


def private_names(source: str) -> Iterator[str]:
    """Yield the private names of other modules that the source imports, or names in a call of ``BY_NAME``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in OURS:
            yield from (alias.name for alias in node.names if is_private(alias.name))
        elif isinstance(node, ast.Call) and _name(node.func) in BY_NAME:
            texts = (each.value for each in node.args[:2] if isinstance(each, ast.Constant))
            yield from (text for text in texts if isinstance(text, str) and is_private(text))


def _name(function: ast.expr) -> str:
    return getattr(function, "id", "") or getattr(function, "attr", "")


@pytest.mark.parametrize(
    "source",
    [
        "from narcore.cache.eviction import _scan",
        "monkeypatch.setattr('narcore.cache.eviction._scan', scan)",
        "monkeypatch.setattr(eviction, '_scan', scan)",
        "mock.patch('narcore.cache.eviction._scan')",
        "patch.object(eviction, '_scan')",
        "getattr(eviction, '_scan')",
    ],
)
def test_a_private_name_is_found(source: str) -> None:
    assert [name.rpartition(".")[2] for name in private_names(source)] == ["_scan"]


def test_no_test_uses_a_private_name_of_another_module() -> None:
    sources = {path.relative_to(ROOT): path.read_text() for path in (ROOT / "tests").rglob("*.py")}
    assert len(sources) > 100
    found = {str(path): names for path, source in sources.items() if (names := list(private_names(source)))}
    assert found == {}
