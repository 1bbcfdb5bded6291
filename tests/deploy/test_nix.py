"""A real Nix parses the Nix files, checks the flake, and evaluates it with a stand-in for nixpkgs.

These tests can't show whether nixpkgs has all packages in suitable versions, and whether the package builds.
"""

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT
from tests.realnix import RealNix

SYSTEM = "x86_64-linux"
EXTRAS = ("server", "metrics", "objectstore", "isal", "lz4")
AUTHOR = ("-c", "user.name=test", "-c", "user.email=test@test.invalid")


class Flake:
    """The flake in a copy of the checkout, with a stand-in for nixpkgs."""

    def __init__(self, nix: RealNix, source: Path, nixpkgs: Path) -> None:
        self.nix = nix
        self.nixpkgs = f"path:{nixpkgs}"
        self.url = f"{source}/deploy"  # as users write it; Nix resolves it to git+file://...?dir=deploy

    def run(self, *arguments: str) -> str:
        features = ("--extra-experimental-features", "flakes", "--no-write-lock-file", "--offline")
        override = ("--override-input", "nixpkgs", self.nixpkgs)
        done = self.nix.run("nix", *arguments, *features, *override, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def check(self) -> None:
        self.run("flake", "check", self.url, "--no-build")

    def value(self, attribute: str, function: str) -> Any:
        return json.loads(self.run("eval", f"{self.url}#{attribute}", "--json", "--apply", function))


@pytest.fixture(scope="module")
def flake(tmp_path_factory: pytest.TempPathFactory) -> Flake:
    root = tmp_path_factory.mktemp("nix")
    source = root / "source"
    for name in ("api", "narcore", "narmount", "narserve", "deploy"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"):
        shutil.copy(ROOT / name, source / name)
    for command in (["init", "-q"], ["add", "-A"], [*AUTHOR, "commit", "-q", "-m", "all"]):
        subprocess.run(["git", *command], cwd=source, check=True)
    nixpkgs = root / "nixpkgs"
    shutil.copytree(Path(__file__).parent / "nixpkgs", nixpkgs)
    (nixpkgs / "python.json").write_text(json.dumps(["hatchling", *requirements()]))
    return Flake(RealNix.start(root), source, nixpkgs)


def requirements() -> list[str]:
    """Return the names of the dependencies in pyproject.toml, including those of the extras for servers."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    specifiers = [*project["dependencies"], *(each for name in EXTRAS for each in extras[name])]
    return [re.split("[^A-Za-z0-9._-]", each)[0] for each in specifiers]


def test_nix_accepts_the_flake(flake: Flake) -> None:
    flake.check()


def test_the_package_has_the_dependencies_of_pyproject(flake: Flake) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    function = """package: with package.args; {
        inherit pname version pythonImportsCheck;
        dependencies = map (each: each.name) dependencies;
        source = builtins.attrNames (builtins.readDir src);
        api = builtins.readDir "${src}/api";
    }"""
    found = flake.value(f"packages.{SYSTEM}.default", function)
    assert sorted(found["dependencies"]) == sorted(requirements())
    assert (found["pname"], found["version"]) == (project["name"], project["version"])
    assert found["source"] == ["LICENSE", "README.md", "api", "narcore", "narmount", "narserve", "pyproject.toml"]
    assert {"static", "templates", "index.py"} <= set(found["api"])
    in_overlay = f"""overlay:
      let pkgs = (builtins.getFlake "{flake.nixpkgs}").legacyPackages.{SYSTEM};
      in (overlay pkgs pkgs).nar-serve.name"""
    url = f"{flake.url}#overlays.default"
    assert json.loads(flake.run("eval", url, "--impure", "--json", "--apply", in_overlay)) == "nar-serve"


def test_the_shell_has_the_tools_of_the_tests(flake: Flake) -> None:
    packages = flake.value(f"devShells.{SYSTEM}.default", "shell: map (each: each.name) shell.args.packages")
    assert {"python313", "nix", "nginx", "xz", "zstd", "lzip"} <= set(packages)


def evaluate_module(flake: Flake, configuration: str) -> Any:
    function = f"""module:
      let
        pkgs = (builtins.getFlake "{flake.nixpkgs}").legacyPackages.{SYSTEM};
        config = (pkgs.lib.evalModule module pkgs {{ services.nar-serve = {configuration}; }}).config;
      in if config == null then null else {{
        ports = config.networking.firewall.allowedTCPPorts;
        service = config.systemd.services.nar-serve;
      }}"""
    return json.loads(flake.run("eval", f"{flake.url}#nixosModules.default", "--impure", "--json", "--apply", function))


def unit_settings() -> dict[str, list[str]]:
    """Return the [Service] section of the unit file: all values of each name, in order."""
    text = (ROOT / "deploy" / "nar-serve.service").read_text().partition("[Service]")[2].partition("[Install]")[0]
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def test_the_nixos_service_equals_the_unit_file(flake: Flake) -> None:
    service = evaluate_module(flake, "{ enable = true; }")["service"]
    settings = service["serviceConfig"]
    assert settings.pop("ExecStart").endswith("-nar-serve/bin/nar-serve serve")
    assert settings.pop("ExecReload").endswith("/bin/kill -HUP $MAINPID")
    as_lines = {
        name: [_text(each) for each in (value if isinstance(value, list) else [value])]
        for name, value in settings.items()
    }
    unit = unit_settings()
    for name in ("ExecStart", "ExecReload", "EnvironmentFile"):
        del unit[name]
    assert as_lines == unit
    assert service["environment"] == {"HTTP_ADDR": "127.0.0.1:8383", "NAR_CACHE_URL": "https://cache.nixos.org"}


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def test_nixos_options_become_settings_of_the_service(flake: Flake) -> None:
    assert evaluate_module(flake, "{ }") is None
    configured = evaluate_module(
        flake,
        """{
          enable = true;
          host = "::1";
          port = 80;
          openFirewall = true;
          caches = [ "https://a.example?priority=10" "https://b.example/x%20y" ];
          trustedPublicKeys = [ "a-1:AAAA" "b-1:BBBB" ];
          settings = { NAR_CACHE_SIZE = "10%"; };
          environmentFile = "/run/secrets/nar-serve.env";
        }""",
    )
    assert configured["ports"] == [80]
    assert configured["service"]["serviceConfig"]["EnvironmentFile"] == "/run/secrets/nar-serve.env"
    assert configured["service"]["environment"] == {
        "HTTP_ADDR": "[::1]:80",
        "NAR_CACHE_URL": "https://a.example?priority=10 https://b.example/x%%20y",
        "NAR_TRUSTED_PUBLIC_KEYS": "a-1:AAAA b-1:BBBB",
        "NAR_CACHE_SIZE": "10%%",
    }
    with pytest.raises(AssertionError, match="no such option"):
        evaluate_module(flake, "{ enable = true; hosts = []; }")
    with pytest.raises(AssertionError, match="wrong type"):
        evaluate_module(flake, "{ enable = true; port = 65536; }")


@pytest.mark.parametrize("file", sorted((ROOT / "deploy").rglob("*.nix")), ids=lambda file: file.name)
def test_nix_parses_every_file(flake: Flake, file: Path) -> None:
    flake.nix.run("nix-instantiate", "--parse", file)
