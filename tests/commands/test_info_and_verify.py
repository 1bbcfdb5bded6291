"""``info`` shows the same as Nix, and whether a path is trusted; ``verify`` detects wrong signatures, hashes and sizes."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from narcore.formats import narinfo_json
from narcore.formats.narinfo import NarInfo
from narcore.formats.signature import SecretKey
from tests.builders import binary_cache, hash_part, nar, store_path
from tests.commands.running import InProcess, stored
from tests.e2e import fronts, trees
from tests.e2e.fronts import Front
from tests.e2e.links import HELLO, LINKS_NAME
from tests.e2e.nixcaches import KEY_NAME, NixCaches
from tests.e2e.upstream import Upstream

OTHER_KEY = str(SecretKey("other-1", bytes(32)).public_key)
SAME_NAME = str(SecretKey(KEY_NAME, bytes(32)).public_key)


@pytest.mark.parametrize("name", [HELLO, LINKS_NAME, trees.EMPTIES_NAME])
def test_json_agrees_with_nix(cli: InProcess, caches: NixCaches, tmp_path: Path, name: str) -> None:
    cli.use(caches.cache("xz"))
    path = caches.store_paths[name]
    (tmp_path / "nix.conf").write_text("experimental-features = nix-command\n")
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "NIX_CONF_DIR": str(tmp_path)}
    command = ["nix", "path-info", "--json", "--store", caches.cache("xz").as_uri(), path]
    [expected] = json.loads(subprocess.run(command, env=env, check=True, capture_output=True).stdout)
    found = json.loads(cli.ok("info", "--json", path).out)
    expected.pop("downloadSize", None), found.pop("downloadSize")
    for extra in ("compression", "store", "trusted"):
        expected[extra] = found[extra]
    for hash_key in ("narHash", "downloadHash"):
        assert as_nix32(expected.pop(hash_key, found[hash_key])) == found.pop(hash_key)
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
def test_trust_depends_on_the_keys(
    cli: InProcess, caches: NixCaches, keys: str, trusted: str, signature: str, as_json: bool | None
) -> None:
    cli.use(caches.cache("xz"), NAR_TRUSTED_PUBLIC_KEYS=keys.replace("right", caches.public_key))
    rows = dict(line.split(maxsplit=1) for line in cli.ok("info", caches.store_paths[HELLO]).lines)
    assert rows["trusted"].startswith(trusted)
    assert rows["signatures"].startswith(f"{KEY_NAME}: {signature}")
    assert json.loads(cli.ok("info", "--json", caches.store_paths[HELLO]).out)["trusted"] is as_json


def test_a_content_addressed_path_needs_no_signature(cli: InProcess, caches: NixCaches) -> None:
    cli.use(caches.cache("xz"), NAR_TRUSTED_PUBLIC_KEYS=OTHER_KEY)
    path = caches.store_paths[trees.EMPTIES_NAME]
    assert "content-addressed" in cli.ok("info", path).out.decode()
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
    arguments = ["bad", "cut", "unsigned", "gone", "nowhere", "good"]
    done = cli("verify", *(str(store_path(name)) for name in arguments))
    assert done.lines == [f"{store_path('good')}: signature good, hash good"]
    assert len(done.err.splitlines()) == 5
    assert done.code == 3  # the missing NAR counts as a temporary failure
    for name in ("bad", "cut", "unsigned", "nowhere"):
        assert cli("verify", str(store_path(name))).code == 1


def test_info_from_an_instance_is_the_same(cli: InProcess, caches: NixCaches, instance: Front) -> None:
    cli.use(caches.cache("zstd"), NAR_TRUSTED_PUBLIC_KEYS=caches.public_key)
    for name in (HELLO, LINKS_NAME, trees.EMPTIES_NAME):
        path = caches.store_paths[name]
        expected = json.loads(cli.ok("info", "--json", path).out)
        found = json.loads(cli.ok("info", "--json", f"{instance.url}{path}/some/where").out)
        assert found == expected | {"store": f"{instance.url}/nix/store"}
    gnu = json.loads(cli.ok("info", "--json", f"{instance.url}/unpack{caches.gnu_store_path}").out)
    assert gnu["path"] == caches.gnu_store_path


def test_data_from_an_instance_is_checked_with_local_keys(cli: InProcess, caches: NixCaches, instance: Front) -> None:
    urls = [f"{instance.url}{path}" for path in caches.store_paths.values()]
    cli.use(NAR_TRUSTED_PUBLIC_KEYS=caches.public_key)
    assert all(line.endswith("good, hash good") for line in cli.ok("verify", *urls).lines)
    url = f"{instance.url}{caches.store_paths[HELLO]}"
    cli.use(NAR_TRUSTED_PUBLIC_KEYS=OTHER_KEY)
    assert cli("verify", url).code == 1
    rows = dict(line.split(maxsplit=1) for line in cli.ok("info", url).lines)
    assert rows["trusted"].startswith("NO")
    cli.use(NAR_TRUSTED_PUBLIC_KEYS="")
    assert "no signature checked" in cli.ok("verify", url).lines[0]


def test_wrong_data_from_an_instance_is_detected(cli: InProcess, tmp_path: Path) -> None:
    key = SecretKey("key-1", b"k" * 32)
    files = binary_cache({"good": b"good", "bad": b"bad"}, secret_key=key)
    url = {name: NarInfo.parse(files[f"{hash_part(name)}.narinfo"]).url for name in ("good", "bad")}
    files[url["bad"]] = files[url["good"]]
    cli.use(NAR_TRUSTED_PUBLIC_KEYS=str(key.public_key))
    settings = {"NAR_CACHE_URL": stored(tmp_path / "store", files).as_uri(), "NAR_CACHE_DIR": "off"}
    with fronts.running(settings, tmp_path / "log") as front:
        done = cli("verify", f"{front.url}{store_path('bad')}", f"{front.url}{store_path('good')}")
    assert done.lines == [f"{store_path('good')}: signature good, hash good"]
    assert done.code == 3  # the instance detects the wrong NAR itself, and cuts the connection
    with Upstream() as odd:
        narinfo = narinfo_json.to_json(NarInfo.parse(files[f"{hash_part('bad')}.narinfo"]))
        odd.mount("nix", tmp_path)
        with (
            odd.fault("*format=narinfo", body=json.dumps(narinfo).encode()),
            odd.fault("*format=nar", body=nar(b"good")),
        ):
            done = cli("verify", f"{odd.url}{store_path('bad')}")
    assert (done.code, "NarSize" in done.err or "NarHash" in done.err) == (1, True)


def test_a_url_with_the_hash_in_its_host_is_accepted(cli: InProcess, caches: NixCaches, tmp_path: Path) -> None:
    cache = caches.cache("zstd").as_uri()
    with fronts.running(
        {"NAR_CACHE_URL": cache, "NAR_CACHE_DIR": "off", "DOMAIN": "localhost"}, tmp_path / "log"
    ) as front:
        own = f"http://{caches.hash_part(HELLO)}.localhost:{front.port}"
        assert cli.ok("cat", f"{own}/bin/hello").out == trees.SCRIPT
        assert cli.ok("ls", own).lines == ["./bin", "./lib", "./share"]
        assert json.loads(cli.ok("info", "--json", own).out)["path"] == caches.store_paths[HELLO]
