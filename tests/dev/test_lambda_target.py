"""``start-dev --target lambda``: requests that fail on Lambda also fail locally."""

import base64
import json
import sys
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from werkzeug.test import Client

from narserve.dev.apigateway import ENVELOPE_LIMIT
from narserve.dev.lambdatarget import LambdaTarget
from tests import ROOT
from tests.builders import Tree, binary_cache, store_path
from tests.dev.checkout import Running, environment, running

TREE: Tree = {b"bytes \xff+%41": b"found", b"fits": bytes(4 << 20), b"large": bytes(4 << 20) + b"x"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("lambda")
    for name, data in binary_cache({"tree": TREE}).items():
        path = directory / "cache" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    environ = environment(NAR_CACHE_URL=(directory / "cache").as_uri(), NAR_CACHE_DIR=str(directory / "nars"))
    command = (sys.executable, "-m", "narserve.dev.supervisor", "--target", "lambda")
    with running(ROOT, directory / "log", environ, *command) as started:
        yield started


def test_names_and_stages_are_as_on_lambda(server: Running) -> None:
    path = f"{store_path('tree')}/bytes%20%FF+%2541"
    for prefix in ("", "/prod"):
        status, headers, body = server.get(f"{prefix}{path}")
        assert (status, body) == (200, "found")
        assert headers["content-length"] == "5"
    assert server.get(f"/prod{store_path('tree')}")[1]["location"] == f"/prod{store_path('tree')}/"
    assert server.get("/favicon.svg")[0] == 404  # only Vercel serves public/


def test_responses_are_limited_as_on_lambda(server: Running) -> None:
    assert server.get(f"{store_path('tree')}/fits")[0] == 200
    status, _, body = server.get(f"{store_path('tree')}/large")
    assert status == 413
    assert "curl -r" in body
    status, headers, _ = server.get(f"{store_path('tree')}/large", "HEAD")
    assert (status, headers["nar-file-size"]) == (200, str((4 << 20) + 1))
    assert any("413" in line for line in server.lines())


@pytest.mark.parametrize(
    ("envelope", "detail"),
    [
        ({"statusCode": 200, "body": "x" * ENVELOPE_LIMIT, "headers": {}}, str(ENVELOPE_LIMIT)),
        (
            {"statusCode": 200, "body": base64.b64encode(bytes(4_800_000)).decode(), "isBase64Encoded": True},
            "bytes of JSON",
        ),
        ({"statusCode": 200, "headers": {"x": "caf\u00e9"}}, "ASCII"),
        ({"body": "no status"}, "statusCode"),
        ("text", "invalid response"),
    ],
)
def test_envelopes_that_lambda_refuses_are_refused(
    envelope: Any, detail: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(LambdaTarget(lambda: lambda event, context: envelope)) as target:
        answer = Client(target).get("/x", environ_base={"REMOTE_ADDR": "127.0.0.1"})
    assert answer.status_code == 502
    assert detail in json.loads(answer.data)["detail"]
    assert "would get status 502 on Lambda" in capsys.readouterr().err
