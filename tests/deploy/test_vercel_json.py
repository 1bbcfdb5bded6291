"""vercel.json contains only keys that Vercel supports, and only the intended files are published."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from narserve.dev.routing import Deployment, find_functions
from tests import ROOT

# https://vercel.com/docs/project-configuration/vercel-json, without the keys for old projects (builds, routes, name, version, env,
# build, public): with "builds" or "routes", Vercel ignores many other keys.
TOP = {
    "$schema", "buildCommand", "bulkRedirectsPath", "bunVersion", "cleanUrls", "crons", "devCommand", "fluid", "framework",
    "functionFailoverRegions", "functions", "git", "headers", "ignoreCommand", "images", "installCommand",
    "outputDirectory", "redirects", "regions", "rewrites", "trailingSlash",
}  # fmt: skip
# "memory" can't be set for functions on Fluid compute, the default of new projects.
FUNCTION = {"maxDuration", "includeFiles", "excludeFiles", "runtime", "supportsCancellation", "regions"}
REWRITE = {"source", "destination", "has", "missing", "statusCode"}
HEADERS = {"source", "headers", "has", "missing"}
HEADER = {"key", "value"}


def config() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "vercel.json").read_text())
    return found


def unknown(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the keys that Vercel does not support. It would ignore most of them silently."""
    yield from found.keys() - TOP
    for function in found.get("functions", {}).values():
        yield from function.keys() - FUNCTION
    for rewrite in found.get("rewrites", []):
        yield from rewrite.keys() - REWRITE
    for rule in found.get("headers", []):
        yield from rule.keys() - HEADERS
        for header in rule["headers"]:
            yield from header.keys() - HEADER


def test_vercel_supports_every_key() -> None:
    assert list(unknown(config())) == []
    broken = config()
    broken["rewrite"] = broken.pop("rewrites")
    broken["functions"]["api/index.py"]["maxDurations"] = 1
    broken["headers"][0]["headers"][0]["name"] = "x"
    assert set(unknown(broken)) == {"rewrite", "maxDurations", "name"}


def test_one_function_gets_every_path() -> None:
    found = config()
    assert found["framework"] is None  # otherwise Vercel detects Flask, and passes the function a different path
    assert found["rewrites"] == [{"source": "/(.*)", "destination": "/api/index"}]
    assert [*found["functions"]] == ["api/index.py"]


def test_nothing_else_becomes_a_function() -> None:
    assert {function.file for function in find_functions(ROOT).values()} == {"api/index.py"}


def test_the_source_is_not_published() -> None:
    """Without public/, Vercel would publish the source tree."""
    public = Deployment.read(ROOT).public
    assert set(public) == {"/favicon.svg"}


def test_packages_that_the_function_does_not_use_are_excluded() -> None:
    excluded = config()["functions"]["api/index.py"]["excludeFiles"].strip("{}").split(",")
    for pattern in excluded:
        assert pattern.endswith("/**")
        assert (ROOT / pattern.removesuffix("/**")).is_dir(), f"{pattern} excludes nothing"
    assert {"tests/**", "deploy/**", "narserve/**", "narmount/**"} <= set(excluded)
