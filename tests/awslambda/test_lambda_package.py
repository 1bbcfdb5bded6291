"""The Lambda package, and the stacks that osls makes from the two configurations."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from narcore.stores.writer import CLAIM_SECONDS
from tests import ROOT, tools
from tests.builders import binary_cache, store_path
from tests.e2e import fronts, s3
from tests.e2e.client import Client, url_path

pytestmark = pytest.mark.slow

SIZE_LIMIT = 35_000_000
COMPRESSIONS = ("zstd", "xz", "br", "lz4", "bzip2", "gzip", "none")


# --- the stacks


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files that a deployment needs, because osls writes beside its configuration."""
    root = tmp_path_factory.mktemp("checkout")
    for name in ("api", "narcore", "narserve", "deploy", "locks"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("serverless.yml", "serverless.stream.yml", "pyproject.toml"):
        shutil.copy(ROOT / name, root)
    return root


def package(checkout: Path, config: str) -> dict[str, Any]:
    """Return the resources of the stack. cfn-lint checks them."""
    environ = {
        name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "NAR_", "PYTHON", "VIRTUAL"))
    }
    environ |= {"AWS_EC2_METADATA_DISABLED": "true", "SLS_TELEMETRY_DISABLED": "1", "PYTHON": sys.executable}
    command: list[str | Path] = [tools.osls(), "package", "--config", config]
    done = subprocess.run(command, cwd=checkout, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in (done.stdout + done.stderr).lower().replace("warning: location", "")
    template = checkout / ".serverless/cloudformation-template-update-stack.json"
    linted = subprocess.run([tools.cfn_lint(), template], capture_output=True, text=True, check=False)
    assert linted.returncode == 0, linted.stdout
    resources: dict[str, Any] = json.loads(template.read_text())["Resources"]
    return resources


@pytest.fixture(scope="module")
def stack(checkout: Path) -> dict[str, Any]:
    return package(checkout, "serverless.yml")


def statements(stack: dict[str, Any]) -> list[dict[str, Any]]:
    (policy,) = stack["IamRoleLambdaExecution"]["Properties"]["Policies"]
    found: list[dict[str, Any]] = policy["PolicyDocument"]["Statement"]
    return found


def test_the_buffered_stack_has_the_limits_of_the_gateway(stack: dict[str, Any]) -> None:
    function = stack["AppLambdaFunction"]["Properties"]
    assert function["Handler"] == "narserve/awslambda/handler.handler"
    assert function["Architectures"] == ["arm64"]
    assert function["Timeout"] == CLAIM_SECONDS
    assert function["Environment"]["Variables"]["NAR_OFFLOAD_URL"] == {"Fn::Sub": "s3://${LargeFiles}/files"}
    gateway = stack["ApiGatewayRestApi"]["Properties"]
    assert gateway["BinaryMediaTypes"] == ["*/*"]
    assert gateway["EndpointConfiguration"] == {"Types": ["REGIONAL"]}
    assert "MinimumCompressionSize" not in gateway
    assert stack["AppLogGroup"]["Properties"]["RetentionInDays"] == 14
    methods = [each["Properties"] for each in stack.values() if each["Type"] == "AWS::ApiGateway::Method"]
    assert [method["HttpMethod"] for method in methods] == ["ANY", "ANY"]
    assert {method["Integration"]["Type"] for method in methods} == {"AWS_PROXY"}


def test_the_role_has_only_the_permissions_it_needs(stack: dict[str, Any]) -> None:
    allowed = {
        action: str(statement["Resource"])
        for statement in statements(stack)
        for action in ([statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"])
    }
    assert {action for action in allowed if not action.startswith("logs:")} == {
        "s3:GetObject",
        "s3:PutObject",
        "s3:AbortMultipartUpload",
        "s3:DeleteObject",
        "s3:ListBucket",
    }
    assert "/files/claims/*" in allowed["s3:DeleteObject"]
    assert "LargeFiles" in allowed["s3:ListBucket"]
    assert not [action for action, resource in allowed.items() if resource in ("*", "['*']")]


def test_the_function_may_only_read_the_tier_if_there_is_one(checkout: Path) -> None:
    for config in ("serverless.yml", "serverless.stream.yml"):
        stack = package(checkout, config)
        policy = stack["TierPolicy"]
        assert policy["Condition"] == "HasTier"
        found = policy["Properties"]["PolicyDocument"]["Statement"]
        assert [statement["Action"] for statement in found] == ["s3:GetObject", "s3:ListBucket"]
        url = stack["AppLambdaFunction"]["Properties"]["Environment"]["Variables"]["NAR_TIER_URL"]
        assert url["Fn::If"][0] == "HasTier"


def test_the_streamed_stack_has_no_bucket(checkout: Path, stack: dict[str, Any]) -> None:
    streaming = package(checkout, "serverless.stream.yml")
    variables = streaming["AppLambdaFunction"]["Properties"]["Environment"]["Variables"]
    assert variables["AWS_LAMBDA_EXEC_WRAPPER"] == "/var/task/narserve/awslambda/stream"
    assert "NAR_OFFLOAD_URL" not in variables
    assert {action for each in statements(streaming) for action in each["Action"]} <= {
        "logs:CreateLogStream",
        "logs:CreateLogGroup",
        "logs:TagResource",
        "logs:PutLogEvents",
    }
    integrations = [
        each["Properties"]["Integration"] for each in streaming.values() if each["Type"] == "AWS::ApiGateway::Method"
    ]
    assert len(integrations) == 2
    for integration in integrations:
        assert integration["ResponseTransferMode"] == "STREAM"
        assert integration["TimeoutInMillis"] == 300_000
        assert "response-streaming-invocations" in str(integration["Uri"])


def test_the_package_is_small_and_has_only_the_needed_files(
    checkout: Path, stack: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    file = checkout / "dist/lambda/nar-serve.zip"
    size = file.stat().st_size
    with capsys.disabled():
        print(f" [Lambda package: {size / 1e6:.1f} MB] ", end="")
    assert size < SIZE_LIMIT
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        modes = {info.filename: info.external_attr >> 16 & 0o777 for info in archive.infolist()}
    assert {
        "narserve/awslambda/handler.py",
        "api/templates/listing.html",
        "api/static/style.css",
        "mangum/__init__.py",
    } <= set(names)
    assert not [
        name
        for name in names
        if name.startswith(("tests/", "narmount/", "narserve/commands", "narserve/dev", "boto", "serverless"))
    ]
    assert any("aarch64" in name for name in names)
    assert not any("x86_64" in name for name in names)
    assert modes["narserve/awslambda/stream"] == 0o755


# --- running the package


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package for this machine and this Python, unpacked read-only as on Lambda."""
    directory = tmp_path_factory.mktemp("package")
    version = ".".join(map(str, sys.version_info[:2]))
    options = ["--python", version, "--architecture", "x86_64", "--output", str(directory / "package.zip")]
    subprocess.run([sys.executable, ROOT / "deploy/lambda/build.py", *options], check=True, capture_output=True)
    root = directory / "task"
    with zipfile.ZipFile(directory / "package.zip") as archive:
        for info in archive.infolist():
            Path(archive.extract(info, root)).chmod(info.external_attr >> 16 & 0o555)
    return root


@pytest.fixture(scope="module")
def cache_urls(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URLs of one binary cache for each compression."""
    root = tmp_path_factory.mktemp("caches")
    for compression in COMPRESSIONS:
        tree = {"file": compression.encode(), "large": bytes(5 << 20)}
        for name, data in binary_cache({f"in-{compression}": tree}, compression=compression).items():
            path = root / compression / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return " ".join((root / compression).as_uri() for compression in COMPRESSIONS)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.S3]:
    with s3.running(tmp_path_factory.mktemp("s3") / "log") as server:
        yield server


@pytest.mark.parametrize("platform", ["lambda", "stream"])
def test_the_package_serves_every_compression(
    unpacked: Path, cache_urls: str, bucket: s3.S3, tmp_path: Path, platform: str
) -> None:
    settings = {
        "NAR_CACHE_URL": cache_urls,
        "NAR_CACHE_DIR": str(tmp_path / "nars"),
        "LAMBDA_PYTHON": str(tools.lambda_python()),
        "LAMBDA_TASK_ROOT": str(unpacked),
    }
    if platform == "lambda":
        settings |= bucket.settings
    with fronts.running(settings, tmp_path / "log", kind=platform) as front, Client(front) as client:
        page = client.get("/", {"Accept": "text/html"})
        assert page.status == 200
        for compression in COMPRESSIONS:
            path = url_path(str(store_path(f"in-{compression}")))
            assert client.get(f"{path}/file").body == compression.encode()
            assert client.get(f"{path}/?list", {"Accept": "text/html"}).status == 200
            assert client.get(f"{path}/?format=zip").status == (302 if platform == "lambda" else 200)
        assert client.get(f"{path}/large").status == (302 if platform == "lambda" else 200)
