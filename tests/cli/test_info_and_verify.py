"""``info`` tells what Nix tells and whom to believe; ``verify`` lets nothing through that is not what was promised."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from narcore.formats.signature import SecretKey
from tests.builders import binary_cache, hash_part, store_path
from tests.cli.running import InProcess, stored
from tests.e2e import trees
from tests.e2e.links import HELLO, LINKS_NAME
from tests.e2e.nixcaches import KEY_NAME, NixCaches

OTHER_KEY = str(SecretKey("other-1", bytes(32)).public_key)
SAME_NAME = str(SecretKey(KEY_NAME, bytes(32)).public_key)


@pytest.mark.parametrize("name", [HELLO, LINKS_NAME, trees.EMPTIES_NAME])
def test_json_has_the_facts_of_nix(cli: InProcess, caches: NixCaches, tmp_path: Path, name: str) -> None:
    cli.use(caches.cache("xz"))
    path = caches.store_paths[name]
    (tmp_path / "nix.conf").write_text("experimental-features = nix-command\n")
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "NIX_CONF_DIR": str(tmp_path)}
    command = ["nix", "path-info", "--json", "--store", caches.cache("xz").as_uri(), path]
    [expected] = json.loads(subprocess.run(command, env=env, check=True, capture_output=True).stdout)
    found = json.loads(cli.ok("info", "--json", path).out)
    expected.pop("downloadSize", None), found.pop("downloadSize")
    for ours in ("compression", "store", "trusted"):
        expected[ours] = found[ours]
    for hashed in ("narHash", "downloadHash"):
        assert as_nix32(expected.pop(hashed, found[hashed])) == found.pop(hashed)
    expected.pop("valid", None)
    assert {key: value for key, value in found.items() if key in expected} == expected


def as_nix32(text: str) -> str:
    from narcore.formats.nixhash import NixHash

    return NixHash.parse(text).to_nix32()


@pytest.mark.parametrize(
    ("keys", "trusted", "signature", "as_json"),
    [
        ("", "not checked", "not checked", None),
        ("right", "yes: signed", "good", True),
        (OTHER_KEY, "NO", "not checked", False),
        (SAME_NAME, "NO", "BAD", False),
        (f"{SAME_NAME} right", "yes: signed", "good", True),
    ],
)
def test_whom_to_believe(
    cli: InProcess, caches: NixCaches, keys: str, trusted: str, signature: str, as_json: bool | None
) -> None:
    cli.use(caches.cache("xz"), NAR_TRUSTED_PUBLIC_KEYS=keys.replace("right", caches.public_key))
    rows = dict(line.split(maxsplit=1) for line in cli.ok("info", caches.store_paths[HELLO]).lines)
    assert rows["trusted"].startswith(trusted)
    assert rows["signatures"].startswith(f"{KEY_NAME}: {signature}")
    assert json.loads(cli.ok("info", "--json", caches.store_paths[HELLO]).out)["trusted"] is as_json


def test_a_path_that_is_its_own_address_needs_no_signature(cli: InProcess, caches: NixCaches) -> None:
    cli.use(caches.cache("xz"), NAR_TRUSTED_PUBLIC_KEYS=OTHER_KEY)
    path = caches.store_paths[trees.EMPTIES_NAME]
    assert "itself says" in cli.ok("info", path).out.decode()
    assert cli.ok("verify", path).lines == [f"{path}: content address good, hash good"]


def test_all_good_paths_verify(cli: InProcess, caches: NixCaches) -> None:
    cli.use(caches.cache("zstd"), NAR_TRUSTED_PUBLIC_KEYS=caches.public_key)
    done = cli.ok("verify", *caches.store_paths.values())
    assert [line.partition(":")[0] for line in done.lines] == list(caches.store_paths.values())
    assert all(line.endswith("good, hash good") for line in done.lines)
    assert not Path(os.environ["NAR_CACHE_DIR"]).is_dir() or not [*Path(os.environ["NAR_CACHE_DIR"]).glob("*.nar")]


def test_one_bad_path_does_not_hide_the_others(cli: InProcess, tmp_path: Path) -> None:
    key = SecretKey("key-1", b"k" * 32)
    files = binary_cache({"good": b"good", "bad": b"bad", "cut": b"cut" * 1000, "gone": b"gone"}, secret_key=key)
    names = {
        name: files[f"{hash_part(name)}.narinfo"].decode().split("URL: ")[1].split("\n")[0]
        for name in ("bad", "cut", "gone", "good")
    }
    files[names["bad"]] = files[names["good"]]
    files[names["cut"]] = files[names["cut"]][:-5]
    files.pop(names["gone"])
    unsigned = binary_cache({"unsigned": b"unsigned"})
    cli.use(stored(tmp_path / "store", unsigned | files), NAR_TRUSTED_PUBLIC_KEYS=str(key.public_key))
    wanted = ["bad", "cut", "unsigned", "gone", "nowhere", "good"]
    done = cli("verify", *(str(store_path(name)) for name in wanted))
    assert done.lines == [f"{store_path('good')}: signature good, hash good"]
    assert len(done.err.splitlines()) == 5
    assert done.code == 3  # the NAR that is not there may be so tomorrow
    for name in ("bad", "cut", "unsigned", "nowhere"):
        assert cli("verify", str(store_path(name))).code == 1
