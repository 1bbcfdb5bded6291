"""The import table of ARCHITECTURE.md: which modules may import which modules, without cycles."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests import ROOT

# The modules of each package from bottom to top. A module may import itself and everything in the lines above its own.
ORDER = {
    "narcore": (
        ("errors", "trace", "sizes", "version"),
        ("concurrency",),
        ("formats",),
        ("streams",),
        ("stores",),
        ("cache",),
        ("lookup",),
        ("tier",),
        ("nars",),
        ("archive",),
        ("settings",),
        ("opening",),
        ("binarycache", "export"),
    ),
    "api": (
        ("http",),
        ("view",),
        ("responses",),
        ("offload", "telemetry"),
        ("errors", "hosts", "proxies"),
        ("openapi",),
        ("handlers",),
        ("factory",),
        ("index",),
    ),
    "narmount": (
        ("metrics",),
        ("fuse",),
        ("files",),
        ("daemon",),
        ("volumes",),
        ("csi", "docker"),
    ),
    "narserve": (
        ("awslambda", "server", "terminal"),
        ("dev", "session", "get"),
        ("commands",),
        ("program",),
        ("__main__",),
    ),
}

# The modules of narcore that a package or a part of it may import. In narcore ORDER decides, but stores may not import formats.
LIBRARY = (
    "narcore.binarycache",
    "narcore.settings",
    "narcore.errors",
    "narcore.trace",
    "narcore.sizes",
    "narcore.version",
    "narcore.concurrency",
    "narcore.formats",
    "narcore.lookup.pathinfo",
    "narcore.nars.accessor",
)
MAY_IMPORT = {
    "api": (*LIBRARY, "narcore.archive"),
    "api.http": ("narcore.errors", "narcore.formats"),
    "api.offload": (*LIBRARY, "narcore.archive", "narcore.stores.buckets"),
    "narmount": (*LIBRARY, "narcore.nars.opennar"),
    "narserve": ("api", "narmount", "narcore"),
    "narserve.awslambda": ("api", "narcore"),  # is packed for Lambda with these packages only
}
FORBIDDEN = {"narcore.stores": ("narcore.formats",)}

WEB = ("flask", "werkzeug", "jinja2", "markupsafe")
PURE = ("narcore.formats", "narcore.streams", "api.http")
IMPURE = ("asyncio", "concurrent", "http.client", "io", "multiprocessing", "os", "pathlib", "requests", "socket", "subprocess",
          "tempfile", "threading", "time", "urllib3", "flask")  # fmt: skip
HEAVY = ("boto3", "botocore", "brotli", "cryptography", "elftools", "fuse", "grpc", "isal", "lz4", "markdown_it", "obstore",
         "prometheus_client", "pygments", "requests", "urllib3", "zstandard")  # fmt: skip

SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): ast.parse(path.read_text())
    for package in ORDER
    for path in (ROOT / package).rglob("*.py")
}


def imported(module: str) -> Iterator[str]:
    """Yield the full names of the module's imports, at its top or inside; ``a.b`` for ``from a import b`` if it is a module."""
    for node in ast.walk(SOURCES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{module}: use absolute imports"
            names = {f"{node.module}.{alias.name}" for alias in node.names} & SOURCES.keys()
            yield from names or {node.module}


def is_below(name: str, *parents: str) -> bool:
    """Return whether ``name`` is one of the modules ``parents``, or is in one of these packages."""
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


def allowed(module: str) -> tuple[str, ...]:
    """Return the modules and packages that ``module`` may import."""
    package, _, rest = module.partition(".")
    part = rest.partition(".")[0]
    lines = ORDER[package]
    line = next((number for number, names in enumerate(lines) if part in names), None)
    assert line is not None or not part, f"{module} has no place in the order of {package}"
    below = [f"{package}.{name}" for names in lines[:line] for name in names] if part else []
    rule = max((name for name in MAY_IMPORT if is_below(module, name)), key=len, default="")
    return (f"{package}.{part}" if part else package, *below, *MAY_IMPORT.get(rule, ()))


@pytest.mark.parametrize("module", SOURCES)
def test_a_module_imports_only_allowed_modules(module: str) -> None:
    ours = {name for name in imported(module) if is_below(name, *ORDER)}
    assert not {name for name in ours if not is_below(name, *allowed(module))}
    assert not {
        name
        for name in ours
        for part, forbidden in FORBIDDEN.items()
        if is_below(module, part) and is_below(name, *forbidden)
    }
    if is_below(module, "narcore"):
        assert not {name for name in imported(module) if is_below(name, *WEB)}


def test_imports_have_no_cycles() -> None:
    graph = {module: {name for name in imported(module) if name in SOURCES and name != module} for module in SOURCES}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("module", [name for name in SOURCES if is_below(name, *PURE)])
def test_a_pure_module_does_no_input_or_output(module: str) -> None:
    assert not {name for name in imported(module) if is_below(name, *IMPURE)}
    calls = (node.func for node in ast.walk(SOURCES[module]) if isinstance(node, ast.Call))
    assert "open" not in {call.id for call in calls if isinstance(call, ast.Name)}


@pytest.mark.slow
def test_the_wsgi_entry_imports_no_heavy_libraries() -> None:
    """Optional libraries, and libraries that few requests need, would slow down the cold start of a serverless function."""
    program = f"import sys, api.index; print(*sorted(set({HEAVY}) & sys.modules.keys()))"
    environ = {"NAR_CACHE_DIR": "off"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environ, capture_output=True, check=True)
    assert done.stdout.decode().split() == []
