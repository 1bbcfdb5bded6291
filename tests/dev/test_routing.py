"""The development server routes according to vercel.json, as Vercel does."""

import json
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import Client
from werkzeug.wrappers import Request, Response

from narserve.dev.routing import Deployment, Function, Router, VercelJsonError, entry_point, parse_source
from tests import ROOT

CATCH_ALL = {"source": "/(.*)", "destination": "/api/index"}


def deployment(root: Path, **config: Any) -> Deployment:
    for name in ("public/docs", "api/_private", "api/sub"):
        (root / name).mkdir(parents=True)
    (root / "public" / "a name.txt").write_text("static")
    (root / "public" / "docs" / "index.html").write_text("<p>docs")
    (root / "api" / "index.py").write_text("app = 1\n")
    (root / "api" / "sub" / "other.py").write_text("from x import y as application\n")
    (root / "api" / "library.py").write_text("def create_app(): app = 1\n")
    (root / "api" / "_private" / "index.py").write_text("app = 1\n")
    (root / "vercel.json").write_text(json.dumps({"framework": None, "rewrites": [CATCH_ALL]} | config))
    return Deployment.read(root)


def client(found: Deployment) -> Client:
    def load(function: Function) -> Any:
        return Request.application(lambda request: Response(f"{function.file} {request.path}", headers={"X-Own": "1"}))

    return Client(Router(found, load))


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/a%20name.txt", "static"),
        ("/docs/", "<p>docs"),
        ("/docs/index.html", "<p>docs"),
        ("/docs", "api/index.py /docs"),
        ("/../vercel.json", "api/index.py /../vercel.json"),
        ("/%2e%2e/vercel.json", "api/index.py /../vercel.json"),
        ("/", "api/index.py /"),
        ("/api", "api/index.py /api"),
        ("/api/index", "api/index.py /api/index"),
        ("/api/sub/other", "api/sub/other.py /api/sub/other"),
        ("/api/sub/other.py", "api/sub/other.py /api/sub/other.py"),
        ("/api/_private/index", "api/index.py /api/_private/index"),
        ("/nix/store/x%0Ay", "api/index.py /nix/store/x\ny"),
    ],
)
def test_public_files_come_first_then_functions_then_rewrites(tmp_path: Path, path: str, answer: str) -> None:
    assert client(deployment(tmp_path)).get(path, buffered=True).text == answer


def test_a_path_without_a_rewrite_is_not_found(tmp_path: Path) -> None:
    assert client(deployment(tmp_path, rewrites=[])).get("/nix/store", buffered=True).status_code == 404


def test_static_files_have_a_media_type_and_are_read_only(tmp_path: Path) -> None:
    http = client(deployment(tmp_path))
    answer = http.get("/docs/", buffered=True)
    assert answer.content_type == "text/html; charset=utf-8"
    assert answer.headers["Cache-Control"] == "public, max-age=0, must-revalidate"
    assert http.get("/docs/", headers={"If-None-Match": answer.headers["ETag"]}, buffered=True).status_code == 304
    assert http.post("/docs/", buffered=True).status_code == 405


def test_headers_are_added_to_matching_paths_and_never_sent_twice(tmp_path: Path) -> None:
    rules = [
        {"source": "/(.*)", "headers": [{"key": "x-own", "value": "2"}, {"key": "X-All", "value": "1"}]},
        {"source": "/docs/(.*)", "headers": [{"key": "X-Docs", "value": "1"}]},
    ]
    http = client(deployment(tmp_path, headers=rules))
    assert http.get("/x", buffered=True).headers.getlist("X-Own") == ["1"]
    assert http.get("/x", buffered=True).headers["X-All"] == "1"
    assert "X-Docs" not in http.get("/x", buffered=True).headers
    assert http.get("/docs/", buffered=True).headers["X-Docs"] == "1"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"redirects": []}, "does not support 'redirects'"),
        ({"framework": "flask"}, '"framework": null'),
        ({"rewrites": [CATCH_ALL | {"has": []}]}, "does not support 'has'"),
        ({"rewrites": [CATCH_ALL | {"destination": "/api/nothing"}]}, "'/api/nothing' is not the path of a function"),
        ({"rewrites": [CATCH_ALL | {"destination": "https://example.org"}]}, "is not the path of a function"),
        ({"rewrites": [CATCH_ALL | {"source": "/:path*"}]}, "plain text and"),
        ({"rewrites": [CATCH_ALL | {"source": "x"}]}, "'x' is not a path"),
        ({"functions": {"api/library.py": {}}}, "api/library.py is not a function"),
        ({"functions": {"api/index.py": {"runtime": "x"}}}, "does not support 'runtime'"),
    ],
)
def test_settings_that_are_not_emulated_are_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(VercelJsonError, match=message):
        deployment(tmp_path, **config)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_file_that_is_not_a_configuration_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "vercel.json").write_text(text)
    with pytest.raises(VercelJsonError, match=r"vercel\.json is not"):
        Deployment.read(tmp_path)


@pytest.mark.parametrize(
    ("source", "path", "matches"),
    [
        ("/(.*)", "/", True),
        ("/a.b", "/axb", False),
        ("/nix/([0-9]+)/(a|b)", "/nix/12/b", True),
        ("/nix/([0-9]+)/(a|b)", "/nix/12/b/", False),
        ("/x", "/X", False),
    ],
)
def test_source_patterns_match_as_on_vercel(source: str, path: str, matches: bool) -> None:
    assert bool(parse_source(source).fullmatch(path)) is matches


@pytest.mark.parametrize("source", ["/(.*)?", "/a*", "/a+", "/{a}", "/((a))", "/(?=a)", "/(", "/([)", "/:a"])
def test_other_patterns_are_refused(source: str) -> None:
    with pytest.raises(VercelJsonError, match="source"):
        parse_source(source)


def test_a_module_with_app_or_application_is_a_function() -> None:
    assert entry_point("app: object = 1", "x.py") == "app"
    assert entry_point("def application(): ...", "x.py") == "application"
    assert entry_point("def f():\n    app = 1\n", "x.py") is None
    with pytest.raises(VercelJsonError, match=r"x\.py defines 'handler'"):
        entry_point("import y as handler", "x.py")


def test_the_project_has_one_function_and_does_not_publish_its_source() -> None:
    config = json.loads((ROOT / "vercel.json").read_bytes())
    assert config["rewrites"] == [CATCH_ALL]
    assert set(config["functions"]) == {"api/index.py"}
    # Without a public/ directory, Vercel publishes the source tree. Git does not store an empty directory.
    assert [path.name for path in (ROOT / "public").iterdir()] == ["favicon.svg"]
    # The same icon as on the pages, at the URL that browsers request by default.
    assert (ROOT / "public" / "favicon.svg").read_bytes() == (ROOT / "api" / "static" / "icon.svg").read_bytes()


def test_the_project_deploys() -> None:
    found = Deployment.read(ROOT)
    assert {function.file for function in found.functions.values()} == {"api/index.py"}
    index = Function("api/index.py", "api.index", "app")
    assert [found.route(path) for path in ("/", "/nix/store/x", "/narserve/dev/child")] == [index] * 3
    assert found.headers("/nix/store/x") == [("X-Content-Type-Options", "nosniff")]
