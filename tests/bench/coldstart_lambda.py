"""The duration of a cold start on Lambda, with its own runtime client: from the start of the process to the first response."""

import json
import os
import queue
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from narserve.dev.apigateway import HttpRequest, event_of
from tests import ROOT, tools
from tests.bench.material import CacheDirectory, write_file, write_tree
from tests.bench.report import Row, alternate, at_most
from tests.bench.setup import Setup
from tests.e2e.runtime_api import Invocation, RuntimeApi

LIMIT = 600  # ms
EMPTY_HANDLER = "def handler(event, context):\n    return {'statusCode': 200}\n"


def coldstart(setup: Setup) -> Iterator[Row]:
    """Milliseconds from the start of a Lambda process to its first response, from the package as it is deployed."""
    upstream = CacheDirectory(setup.directory / "upstream")
    write_file(setup.directory / "tree" / "file.txt", 4000)
    packed = upstream.add("tree", write_tree(setup.directory / "tree", setup.directory / "a.nar"), "zstd")
    package, without_byte_code, empty = (setup.directory / name for name in ("package", "without-byte-code", "empty"))
    build(package)
    shutil.copytree(package, without_byte_code, ignore=shutil.ignore_patterns("__pycache__"))
    empty.mkdir()
    (empty / "index.py").write_text(EMPTY_HANDLER)
    file = f"{packed.store_path}/file.txt"
    buffered = [str(tools.lambda_python()), "-m", "awslambdaric", "narserve/awslambda/handler.handler"]
    streaming = [str(package / "narserve/awslambda/stream"), str(tools.lambda_python())]
    empty_handler = [str(tools.lambda_python()), "-m", "awslambdaric", "index.handler"]

    def start(command: list[str], root: Path, path: str) -> Callable[[], float]:
        return lambda: first_response(command, root, path, upstream.url, setup.directory / "nars")

    health, content, stream, uncompiled, baseline = alternate(
        max(5, setup.runs),
        start(buffered, package, "/healthz"),
        start(buffered, package, file),
        start(streaming, package, file),
        start(buffered, without_byte_code, "/healthz"),
        start(empty_handler, empty, "/"),
    )
    yield at_most("cold start on awslambdaric, /healthz", health, "ms", LIMIT)
    yield at_most("cold start on awslambdaric, a file of a NAR", content, "ms", LIMIT)
    yield at_most("cold start on the streaming client, a file of a NAR", stream, "ms", LIMIT)
    yield at_most("cold start on awslambdaric without byte code in the package, /healthz", uncompiled, "ms")
    yield at_most("cold start on awslambdaric with an empty handler, for comparison", baseline, "ms")


def build(target: Path) -> None:
    """Build the package for this machine and this Python, and unpack it to ``target``."""
    archive = target.with_suffix(".zip")
    version = ".".join(map(str, sys.version_info[:2]))
    options = ["--python", version, "--architecture", os.uname().machine, "--output", str(archive)]
    subprocess.run([sys.executable, ROOT / "deploy/lambda/build.py", *options], check=True, capture_output=True)
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(target)
    (target / "narserve/awslambda/stream").chmod(0o755)


def first_response(command: list[str], root: Path, path: str, cache_url: str, cache_dir: Path) -> float:
    """Start a function and return the milliseconds until its response to a request for ``path``."""
    shutil.rmtree(cache_dir, ignore_errors=True)
    pending: queue.SimpleQueue[Invocation] = queue.SimpleQueue()
    invocation = Invocation(event_of(HttpRequest("GET", path, [("Host", "example.org")])))
    pending.put(invocation)
    api = RuntimeApi(pending)
    environ = os.environ | {
        "AWS_LAMBDA_FUNCTION_NAME": "nar-serve",
        "AWS_LAMBDA_RUNTIME_API": api.address,
        "LAMBDA_TASK_ROOT": str(root),
        "NAR_CACHE_URL": cache_url,
        "NAR_CACHE_DIR": str(cache_dir),
        "PYTHONDONTWRITEBYTECODE": "1",  # on Lambda, the unpacked package is read-only
    }
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=root, env=environ, stderr=subprocess.DEVNULL)
    try:
        parts = list(invocation.parts(30))
        seconds = time.perf_counter() - started
    finally:
        process.terminate()
        process.wait()
        api.close()
    first = parts[0]
    fields = json.loads(first) if isinstance(first, bytes) else first.fields
    assert fields["statusCode"] == 200, fields
    return seconds * 1000
