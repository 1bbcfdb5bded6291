"""What a cold start on Lambda costs, on its own runtime client: from the start of the process to the first answer."""

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
from tests.bench.material import Upstream, write_file, write_tree
from tests.bench.report import Row, alternate, at_most
from tests.bench.setup import Setup
from tests.e2e.runtime_api import Invocation, RuntimeApi

LIMIT = 600
NOTHING = "def handler(event, context):\n    return {'statusCode': 200}\n"


def coldstart(setup: Setup) -> Iterator[Row]:
    """Milliseconds from the start of a Lambda process to its first answer, out of the package as it is deployed."""
    upstream = Upstream(setup.directory / "upstream")
    write_file(setup.directory / "tree" / "file.txt", 4000)
    packed = upstream.add("tree", write_tree(setup.directory / "tree", setup.directory / "a.nar"), "zstd")
    package, bare, nothing = (setup.directory / name for name in ("package", "bare", "nothing"))
    build(package)
    shutil.copytree(package, bare, ignore=shutil.ignore_patterns("__pycache__"))
    nothing.mkdir()
    (nothing / "index.py").write_text(NOTHING)
    file = f"{packed.store_path}/file.txt"
    ours = [str(tools.lambda_python()), "-m", "awslambdaric", "narserve/awslambda/handler.handler"]
    streaming = [str(package / "narserve/awslambda/stream"), str(tools.lambda_python())]
    empty = [str(tools.lambda_python()), "-m", "awslambdaric", "index.handler"]

    def start(command: list[str], root: Path, path: str) -> Callable[[], float]:
        return lambda: first_answer(command, root, path, upstream.url, setup.directory / "nars")

    health, content, stream, slow, least = alternate(
        max(5, setup.runs),
        start(ours, package, "/healthz"),
        start(ours, package, file),
        start(streaming, package, file),
        start(ours, bare, "/healthz"),
        start(empty, nothing, "/"),
    )
    yield at_most("cold start on awslambdaric, /healthz", health, "ms", LIMIT)
    yield at_most("cold start on awslambdaric, a file out of a NAR", content, "ms", LIMIT)
    yield at_most("cold start on our streaming client, a file out of a NAR", stream, "ms", LIMIT)
    yield at_most("the same without byte code in the package, /healthz", slow, "ms")
    yield at_most("awslambdaric with a handler that does nothing, for comparison", least, "ms")


def build(target: Path) -> None:
    """The package for this machine and this Python, unpacked."""
    archive = target.with_suffix(".zip")
    version = ".".join(map(str, sys.version_info[:2]))
    options = ["--python", version, "--architecture", os.uname().machine, "--output", str(archive)]
    subprocess.run([sys.executable, ROOT / "deploy/lambda/build.py", *options], check=True, capture_output=True)
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(target)
    (target / "narserve/awslambda/stream").chmod(0o755)


def first_answer(command: list[str], root: Path, path: str, cache_url: str, cache_dir: Path) -> float:
    shutil.rmtree(cache_dir, ignore_errors=True)
    waiting: queue.SimpleQueue[Invocation] = queue.SimpleQueue()
    invocation = Invocation(event_of(HttpRequest("GET", path, [("Host", "example.org")])))
    waiting.put(invocation)
    api = RuntimeApi(waiting)
    environ = os.environ | {
        "AWS_LAMBDA_FUNCTION_NAME": "nar-serve",
        "AWS_LAMBDA_RUNTIME_API": api.address,
        "LAMBDA_TASK_ROOT": str(root),
        "NAR_CACHE_URL": cache_url,
        "NAR_CACHE_DIR": str(cache_dir),
        "PYTHONDONTWRITEBYTECODE": "1",  # what Lambda unpacks can't be written to
    }
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=root, env=environ, stderr=subprocess.DEVNULL)
    try:
        parts = list(invocation.parts(30))
        spent = time.perf_counter() - started
    finally:
        process.terminate()
        process.wait()
        api.close()
    first = parts[0]
    given = json.loads(first) if isinstance(first, bytes) else first.fields
    assert given["statusCode"] == 200, given
    return spent * 1000
