"""``tier``: adds store paths with their closures, counts what the tier has, and finds and repairs damage. Nix copies from it."""

import json
import subprocess
from pathlib import Path

import pytest

from narcore.formats.signature import SecretKey
from tests import builders, needs
from tests.builders import hash_part, nar_info, store_path
from tests.commands.running import InProcess, stored
from tests.realnix import RealNix

STORE_KEY, TIER_KEY = SecretKey("store-1", bytes(31) + b"s"), SecretKey("tier-1", bytes(31) + b"t")
BIG: dict[str, builders.Tree] = {"data": bytes(range(256)) * 8000}


def cache_with_references() -> dict[str, bytes]:
    """Return a binary cache in which ``app`` refers to ``lib``, which refers to itself and to ``app``; ``other`` is apart."""
    references = {"app": ("lib",), "lib": ("lib", "app"), "other": ()}
    files = {"nix-cache-info": b"StoreDir: /nix/store\n"}
    for name, names in references.items():
        archive = builders.nar({"name": name.encode(), **BIG} if name == "lib" else {"name": name.encode()})
        bases = tuple(store_path(each).base_name for each in names)
        info = nar_info(store_path(name), archive, references=bases, secret_key=STORE_KEY)
        files[info.url] = builders.COMPRESS["zstd"](archive)
        files[f"{info.store_path.hash_part}.narinfo"] = info.to_text().encode()
    return files


@pytest.fixture
def tier(cli: InProcess, tmp_path: Path) -> Path:
    """The directory of an empty tier, which the commands use, with the store of `cache_with_references`."""
    directory = tmp_path / "tier"
    cli.use(
        stored(tmp_path / "store", cache_with_references()),
        NAR_TRUSTED_PUBLIC_KEYS=str(STORE_KEY.public_key),
        NAR_TIER_URL=directory.as_uri(),
        NAR_TIER_SECRET_KEY=TIER_KEY.to_text(),
    )
    return directory


def counts(cli: InProcess) -> tuple[int, int, int]:
    found = json.loads(cli.ok("tier", "stat", "--json").out)
    return found["paths"], found["nars"], found["indexes"]


def test_a_closure_is_added_once(cli: InProcess, tier: Path) -> None:
    lines = cli.ok("tier", "add", "--closure", hash_part("app")).lines
    assert sorted(lines) == sorted(f"{store_path(name)}: added" for name in ("app", "lib"))
    assert counts(cli) == (2, 2, 2)
    assert all("the tier has it" in line for line in cli.ok("tier", "add", "--closure", hash_part("lib")).lines)
    assert cli.ok("tier", "add", hash_part("other")).lines == [f"{store_path('other')}: added"]
    assert counts(cli) == (3, 3, 3)
    assert cli.ok("tier", "stat").lines[1] == "paths      3"
    assert len(cli.ok("tier", "verify").lines) == 3


def test_damage_is_found_and_repaired(cli: InProcess, tier: Path) -> None:
    cli.ok("tier", "add", "--closure", hash_part("app"))
    for path in tier.glob("nar/*.zst"):
        data = path.read_bytes()
        path.write_bytes(data[:-30] + bytes([data[-30] ^ 1]) + data[-29:])
    done = cli("tier", "verify")
    assert (done.code, done.lines) == (1, [])
    assert done.err.count("\n") == 2
    assert cli("tier", "verify", hash_part("app")).code == 1
    cli.ok("tier", "add", "--force", "--closure", hash_part("app"))
    assert len(cli.ok("tier", "verify").lines) == 2


def test_a_path_that_is_not_in_the_stores_or_not_in_the_tier_is_an_error(cli: InProcess, tier: Path) -> None:
    assert cli("tier", "add", hash_part("missing")).code == 1
    cli.ok("tier", "add", hash_part("app"))
    assert cli("tier", "verify", hash_part("lib")).code == 1


@pytest.mark.parametrize(
    ("settings", "command", "hint"),
    [
        ({"NAR_TIER_URL": ""}, ("stat",), "NAR_TIER_URL"),
        ({"NAR_TIER_URL": ""}, ("verify",), "NAR_TIER_URL"),
        ({"NAR_TIER_URL": "https://tier.invalid"}, ("add", hash_part("app")), "s3://"),
        ({"NAR_TIER_URL": "https://tier.invalid"}, ("stat",), "s3://"),
        ({"NAR_TIER_SECRET_KEY": "", "NAR_TIER_PUBLIC_KEYS": "x"}, ("stat",), "NAR_TIER_PUBLIC_KEYS"),
        (
            {"NAR_TIER_SECRET_KEY": "", "NAR_TIER_PUBLIC_KEYS": str(TIER_KEY.public_key)},
            ("add", "x"),
            "not a store path",
        ),
        (
            {"NAR_TIER_SECRET_KEY": "", "NAR_TIER_PUBLIC_KEYS": str(TIER_KEY.public_key)},
            ("add", hash_part("app")),
            "NAR_TIER_SECRET_KEY",
        ),
        ({"NAR_CACHE_URL": "file:///nowhere", "NAR_TRUSTED_PUBLIC_KEYS": ""}, ("stat",), "NAR_TRUSTED_PUBLIC_KEYS"),
    ],
)
def test_a_missing_setting_is_named(
    cli: InProcess, tier: Path, settings: dict[str, str], command: tuple[str, ...], hint: str
) -> None:
    cli.use(**settings)
    done = cli("tier", *command)
    assert done.code == 2
    assert hint in done.err
    assert done.err.count("\n") == 1


def test_a_path_of_a_store_that_is_trusted_without_signatures_is_not_added(
    cli: InProcess, tier: Path, tmp_path: Path
) -> None:
    cli.use(f"{(tmp_path / 'store').as_uri()}?trusted=1", NAR_TRUSTED_PUBLIC_KEYS=str(TIER_KEY.public_key))
    done = cli("tier", "add", hash_part("app"))
    assert done.code == 2
    assert "not signed by a trusted key" in done.err
    assert not tier.exists()


@pytest.mark.slow
def test_nix_and_zstd_read_the_tier(cli: InProcess, tmp_path: Path) -> None:
    nix = RealNix.start(tmp_path)
    needs.program("zstd")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "big").write_bytes(bytes(range(256)) * 12_000)
    added = nix.run("nix", "store", "add-path", "--store", nix.store, "--name", "hello", str(tmp_path / "src"))
    path = added.stdout.strip()
    nix.sign_all()
    nix.copy_all()
    tier, public = tmp_path / "tier", (tmp_path / "key.pk").read_text()
    cli.use(
        nix.cache,
        NAR_TRUSTED_PUBLIC_KEYS=public,
        NAR_TIER_URL=tier.as_uri(),
        NAR_TIER_SECRET_KEY=TIER_KEY.to_text(),
    )
    cli.ok("tier", "add", "--closure", path)
    cli.ok("tier", "verify")
    (packed,) = tier.glob("nar/*.nar.zst")
    subprocess.run(["zstd", "-q", "-t", packed], check=True)
    url, copied = f"file://{tier}", f"local?root={tmp_path}/copied"
    keys = ("--option", "trusted-public-keys", public)
    nix.run("nix", "copy", *keys, "--from", url, "--to", copied, path)
    nix.run("nix", "store", "verify", *keys, "--store", copied, path)
    nix.run("nix", "store", "verify", *keys, "--store", url, path)
    name = path.removeprefix("/nix/store/")
    assert (tmp_path / "copied/nix/store" / name / "big").read_bytes() == (tmp_path / "src" / "big").read_bytes()
