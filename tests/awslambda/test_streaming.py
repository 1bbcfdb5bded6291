"""The streaming runtime client for Lambda, against an emulated Runtime API: it streams responses and reports failures."""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest

from narcore.settings import DEFAULT_PUBLIC_KEY
from narserve.awslambda.streaming import Runtime, environ_of
from narserve.dev.apigateway import HttpRequest, event_of
from tests import ROOT
from tests.e2e.runtime_api import FunctionError, Invocation, Prelude, RuntimeApi

pytestmark = pytest.mark.slow

Application = Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]


@pytest.fixture
def api() -> Iterator[RuntimeApi]:
    api = RuntimeApi(queue.SimpleQueue())
    try:
        yield api
    finally:
        api.close()


def answer(api: RuntimeApi, application: Application) -> tuple[Any, list[bytes], FunctionError | None]:
    """Send one request. Returns the prelude, the chunks, and the reported failure."""
    invocation = Invocation(event_of(HttpRequest("GET", "/x", [("Host", "example.org")])))
    api.pending.put(invocation)
    runtime = Runtime(api.address)

    def run() -> None:
        request_id, event = runtime.next()
        runtime.answer(request_id, event, application)
        runtime.close()

    thread = threading.Thread(target=run)
    thread.start()
    parts: list[Prelude | bytes] = []
    failure = None
    try:
        parts.extend(invocation.parts(10))
    except FunctionError as error:
        failure = error
    thread.join()
    prelude = next((part.fields for part in parts if isinstance(part, Prelude)), None)
    return prelude, [part for part in parts if isinstance(part, bytes)], failure


class Body:
    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = chunks
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._chunks)

    def close(self) -> None:
        self.closed = True


def failing(chunks: int) -> Iterator[bytes]:
    for _ in range(chunks):
        yield b"x" * 10
    raise OSError("the disk is gone")


def sends(body: Iterable[bytes], status: str = "200 OK") -> Application:
    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response(status, [("X-One", "1"), ("Set-Cookie", "a"), ("Set-Cookie", "b")])
        return body

    return application


def test_chunks_pass_unchanged(api: RuntimeApi) -> None:
    chunks = [bytes([number]) * (number * 1000 + 1) for number in range(100)]
    body = Body([chunks[0], b"", *chunks[1:]])
    prelude, got, failure = answer(api, sends(body))
    assert (got, failure, body.closed) == (chunks, None, True)
    assert prelude == {"statusCode": 200, "multiValueHeaders": {"X-One": ["1"], "Set-Cookie": ["a", "b"]}}


def test_a_response_without_a_body_is_sent(api: RuntimeApi) -> None:
    prelude, got, failure = answer(api, sends([], "204 No Content"))
    assert (prelude["statusCode"], got, failure) == (204, [], None)


@pytest.mark.parametrize("chunks", [1, 3])
def test_a_failure_after_the_first_chunk_is_reported(
    api: RuntimeApi, chunks: int, capsys: pytest.CaptureFixture[str]
) -> None:
    body = Body(failing(chunks))
    prelude, got, failure = answer(api, sends(body))
    assert (prelude["statusCode"], got, body.closed) == (200, [b"x" * 10] * chunks, True)
    assert "the disk is gone" in str(failure)
    assert "Traceback" in capsys.readouterr().err


def test_a_failure_before_the_first_byte_sends_no_response(api: RuntimeApi, capsys: pytest.CaptureFixture[str]) -> None:
    prelude, got, failure = answer(api, sends(Body(failing(0))))
    assert (prelude, got) == (None, [])
    assert "the disk is gone" in str(failure)
    assert "Traceback" in capsys.readouterr().err


def test_an_invalid_setting_is_reported_in_one_line(api: RuntimeApi) -> None:
    environ = os.environ | {
        "AWS_LAMBDA_RUNTIME_API": api.address,
        "LAMBDA_TASK_ROOT": str(ROOT),
        "NAR_CACHE_URL": "ftp://x",
        "NAR_TRUSTED_PUBLIC_KEYS": DEFAULT_PUBLIC_KEY,
    }
    command: list[str | Path] = [ROOT / "narserve/awslambda/stream", sys.executable, "/var/runtime/bootstrap.py"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("nar-serve: ")
    assert done.stderr.count("\n") == 1
    (reported,) = map(json.loads, api.init_errors)
    assert reported["errorType"] == "SystemExit"
    assert "ftp://x" in reported["errorMessage"]


def test_an_event_becomes_a_wsgi_environ() -> None:
    headers = [("Host", "a.example:8443"), ("X-A", "1"), ("X-A", "2"), ("Content-Type", "text/plain")]
    event = event_of(HttpRequest("POST", "/prod/a%2Fb//%FF?x=1&x=%2B&y", headers, b"\xff\x00", "192.0.2.1"))
    environ = environ_of(event)
    assert environ["wsgi.input"].read() == b"\xff\x00"
    expected = {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "/prod",
        "PATH_INFO": "/a/b//\xff",
        "QUERY_STRING": "x=1&x=%2B&y=",
        "CONTENT_TYPE": "text/plain",
        "CONTENT_LENGTH": "2",
        "HTTP_X_A": "1, 2",
        "HTTP_HOST": "a.example:8443",
        "SERVER_NAME": "a.example",
        "REMOTE_ADDR": "192.0.2.1",
        "wsgi.url_scheme": "https",
    }
    assert {name: environ[name] for name in expected} == expected
