"""Who may import whom. This is all there is to check the architecture."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What the modules below each name may import of narcore and api, by the longest name that fits; themselves they always may.
# A hall module (narcore.lookup, narcore.remote, ...) may import every room, and no front end.
ROOMS = ("narcore.formats", "narcore.streams", "narcore.stores", "narcore.cache")
VALUES = (
    "narcore.errors",
    "narcore.formats",
    "narcore.pathinfo",
    "narcore.resolve",
    "narcore.settings",
    "narcore.sizes",
    "narcore.trace",
)
FRONT = (*VALUES, "narcore.accessor", "narcore.archive", "narcore.binarycache")
HALL = tuple(
    f"narcore.{path.stem}" for path in (ROOT / "narcore").glob("*.py") if path.stem not in ("__init__", "__main__")
)
MAY_IMPORT = {
    "narcore": (*HALL, *ROOMS),
    "narcore.__main__": ("narcore.cli",),
    "narcore.errors": (),
    "narcore.formats": ("narcore.errors",),
    "narcore.streams": ("narcore.errors", "narcore.formats"),
    "narcore.stores": ("narcore.errors",),
    "narcore.cache": ("narcore.errors", "narcore.formats", "narcore.streams.closing", "narcore.trace"),
    "narcore.accessor": ("narcore.formats",),
    "narcore.archive": ("narcore.errors", "narcore.formats", "narcore.accessor"),
    "narcore.resolve": ("narcore.errors", "narcore.formats"),  # pure, as formats are
    "narcore.sizes": (),
    "narcore.trace": (),
    "narcore.cli": (*FRONT, "narcore.export", "narcore.streams.closing"),
    "narcore.cli.cache": ("narcore.cli", *FRONT, "narcore.cache"),  # the upkeep of the disk cache is what that command is for
    "narcore.cli.instancestore": ("narcore.cli", *FRONT, "narcore.stores.base"),  # it is a store
    "narcore.mount": (*FRONT, "narcore.localnar", "narcore.cache.lru"),
    "narcore.mount.command": ("narcore.mount", *FRONT, "narcore.cli"),
    "narcore.mount.status": ("narcore.mount", *FRONT, "narcore.cli"),
    "narcore.volumes": ("narcore.errors", "narcore.mount"),
    "narcore.csi": ("narcore.errors", "narcore.formats.storepath", "narcore.mount", "narcore.volumes"),
    "narcore.csi.command": ("narcore.csi", "narcore.errors", "narcore.mount", "narcore.volumes", "narcore.cli"),
    "api": FRONT,
    "api._dev": ("api", *FRONT, "narcore.export"),
    "api._docker": ("api", *FRONT, "narcore.cli", "narcore.mount", "narcore.volumes"),
    "api._lambda": ("api", *FRONT),
    "api._server": ("api", *FRONT, "narcore.cli"),
    # It writes to a bucket, which is no store of ours: of the stores it takes how they name one and tell their errors.
    "api.offload": ("api", *FRONT, "narcore.stores.bucketurl", "narcore.stores.obstoreclient", "narcore.cache.singleflight"),
}  # fmt: skip
WEB = ("flask", "werkzeug", "jinja2")
IMPURE = ("asyncio", "concurrent", "http", "io", "multiprocessing", "os", "pathlib", "requests", "socket", "subprocess", "tempfile",
          "threading", "time", "urllib3")  # fmt: skip
HEAVY = ("boto3", "botocore", "brotli", "cryptography", "elftools", "fuse", "grpc", "isal", "lz4", "markdown_it", "obstore",
         "prometheus_client", "pygments", "requests", "urllib3", "zstandard")  # fmt: skip

SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): ast.parse(path.read_text())
    for package in ("narcore", "api")
    for path in (ROOT / package).rglob("*.py")
}


def imported(module: str) -> Iterator[str]:
    """What the module imports, at its top or later, as full names: a.b for ``from a import b``, where that is a module."""
    for node in ast.walk(SOURCES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{module}: relative imports hide what they mean"
            names = {f"{node.module}.{alias.name}" for alias in node.names} & SOURCES.keys()
            yield from names or {node.module}


def is_below(name: str, *parents: str) -> bool:
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


@pytest.mark.parametrize("module", SOURCES)
def test_who_imports_whom(module: str) -> None:
    rule = max((name for name in MAY_IMPORT if is_below(module, name)), key=len)
    ours = {name for name in imported(module) if is_below(name, "narcore", "api") and name != "narcore"}
    breaches = {name for name in ours if not is_below(name, rule, *MAY_IMPORT[rule])}
    assert not breaches, f"{module} is of {rule}, which may import {MAY_IMPORT[rule]}"
    if is_below(module, "narcore"):
        assert not {name for name in imported(module) if is_below(name, *WEB)}


@pytest.mark.parametrize(
    "module", [name for name in SOURCES if is_below(name, "narcore.formats", "narcore.streams", "narcore.resolve")]
)
def test_what_is_pure_does_nothing(module: str) -> None:
    """Nothing is opened, waited for or looked up."""
    assert not {name for name in imported(module) if is_below(name, *IMPURE)}
    calls = (node.func for node in ast.walk(SOURCES[module]) if isinstance(node, ast.Call))
    assert "open" not in {call.id for call in calls if isinstance(call, ast.Name)}


def test_a_start_imports_nothing_heavy() -> None:
    """Neither what is optional nor what only some requests need: that would be a serverless cold start's time."""
    program = f"import sys, api.index; print(*sorted(set({HEAVY}) & sys.modules.keys()))"
    environ = {"NAR_CACHE_DIR": "off"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environ, capture_output=True, check=True)
    assert done.stdout.decode().split() == []
