"""vercel.json says what Vercel knows, and what is published is what is meant to be."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from narserve.dev.routing import Deployment, find_functions
from tests import ROOT

# https://vercel.com/docs/project-configuration/vercel-json, without what is kept for old projects only (builds, routes,
# name, version, env, build, public): with "builds" or "routes" in it, Vercel ignores much of the rest.
TOP = {
    "$schema", "buildCommand", "bulkRedirectsPath", "bunVersion", "cleanUrls", "crons", "devCommand", "fluid", "framework",
    "functionFailoverRegions", "functions", "git", "headers", "ignoreCommand", "images", "installCommand",
    "outputDirectory", "redirects", "regions", "rewrites", "trailingSlash",
}  # fmt: skip
# "memory" can't be set for functions on Fluid compute, which is what new projects have.
FUNCTION = {"maxDuration", "includeFiles", "excludeFiles", "runtime", "supportsCancellation", "regions"}
REWRITE = {"source", "destination", "has", "missing", "statusCode"}
HEADERS = {"source", "headers", "has", "missing"}
HEADER = {"key", "value"}


def config() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "vercel.json").read_text())
    return found


def unknown(found: Mapping[str, Any]) -> Iterator[str]:
    """Keys that Vercel does not know: most of them it would pass over in silence."""
    yield from found.keys() - TOP
    for function in found.get("functions", {}).values():
        yield from function.keys() - FUNCTION
    for rewrite in found.get("rewrites", []):
        yield from rewrite.keys() - REWRITE
    for rule in found.get("headers", []):
        yield from rule.keys() - HEADERS
        for header in rule["headers"]:
            yield from header.keys() - HEADER


def test_vercel_knows_every_key() -> None:
    assert list(unknown(config())) == []
    broken = config()
    broken["rewrite"] = broken.pop("rewrites")
    broken["functions"]["api/index.py"]["maxDurations"] = 1
    broken["headers"][0]["headers"][0]["name"] = "x"
    assert set(unknown(broken)) == {"rewrite", "maxDurations", "name"}


def test_one_function_gets_every_path() -> None:
    found = config()
    assert found["framework"] is None  # else Vercel finds Flask, and the function sees another path
    assert found["rewrites"] == [{"source": "/(.*)", "destination": "/api/index"}]
    assert [*found["functions"]] == ["api/index.py"]


def test_nothing_else_becomes_a_function() -> None:
    assert {function.file for function in find_functions(ROOT).values()} == {"api/index.py"}


def test_nothing_of_the_source_is_published() -> None:
    """Without public/, everything would be."""
    public = Deployment.read(ROOT).public
    assert set(public) == {"/favicon.svg"}


def test_what_is_not_run_is_left_out_of_the_function() -> None:
    left_out = config()["functions"]["api/index.py"]["excludeFiles"].strip("{}").split(",")
    for pattern in left_out:
        assert pattern.endswith("/**")
        assert (ROOT / pattern.removesuffix("/**")).is_dir(), f"{pattern} leaves out nothing"
    assert {"tests/**", "deploy/**", "narserve/**", "narmount/**"} <= set(left_out)
