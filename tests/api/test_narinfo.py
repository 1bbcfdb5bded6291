"""``?format=narinfo``: the narinfo of a store path, at every URL in it."""

import json
from collections.abc import Iterator

import pytest
from flask.testing import FlaskClient

from api.factory import create_app
from narcore.binarycache import BinaryCache
from narcore.formats import narinfo_json
from narcore.formats.narinfo import NarInfo
from narcore.formats.signature import SecretKey
from narcore.settings import Settings
from narcore.stores.memory import MemoryStore
from tests.builders import binary_cache, hash_part, link, store_path

KEY = SecretKey("key-1", b"k" * 32)
FILES = binary_cache({"x-1.0": {"bin": {"run": b"#!"}, "to": link("bin")}}, secret_key=KEY)
NARINFO = NarInfo.parse(FILES[f"{hash_part('x-1.0')}.narinfo"])
ROOT = str(store_path("x-1.0"))
QUERY = "?format=narinfo"


def serve(*, trusted: bool = True, domain: str = "") -> Iterator[FlaskClient]:
    store = MemoryStore({name: data for name, data in FILES.items() if name.endswith(("info",))})  # no NAR, no listing
    cache = BinaryCache([store], trusted_keys=[KEY.public_key] if trusted else [])
    with create_app(Settings(domain=domain), cache).test_client() as client:
        yield client


@pytest.fixture
def client() -> Iterator[FlaskClient]:
    yield from serve(domain="nar.test")


def test_every_url_in_a_store_path_has_its_narinfo_and_fetches_no_contents(client: FlaskClient) -> None:
    urls = [
        *(f"{ROOT}{rest}" for rest in ("", "/", "/bin", "/bin/", "/bin/run", "/to", "/none")),
        f"/nix/store/{hash_part('x-1.0')}",
        f"/unpack{ROOT}",
    ]
    answers = [client.get(url + QUERY) for url in urls]
    answers.append(client.get(f"/bin/{QUERY}", headers={"Host": f"{hash_part('x-1.0')}.nar.test"}))
    assert {(answer.status_code, answer.headers["Content-Type"]) for answer in answers} == {(200, "application/json")}
    assert len({answer.data for answer in answers}) == 1
    document = answers[0].get_json()
    assert narinfo_json.from_json(document) == NARINFO
    assert (document["store"], document["trusted"], document["trustedFor"]) == ("memory://store", True, "signature")
    assert {answer.headers["NAR-Verified"] for answer in answers} == {"signature"}


def test_trusted_is_null_without_keys() -> None:
    for client in serve(trusted=False):
        answer = client.get(ROOT + QUERY)
        assert answer.get_json()["trusted"] is None
        assert "trustedFor" not in answer.get_json()
        assert "NAR-Verified" not in answer.headers


def test_a_narinfo_may_be_cached_for_five_minutes_and_revalidated(client: FlaskClient) -> None:
    got = client.get(ROOT + QUERY)
    assert got.headers["Cache-Control"] == "public, max-age=300"  # not immutable: signatures may be added
    again = client.get(ROOT + QUERY, headers={"If-None-Match": got.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")
    head = client.head(ROOT + QUERY)
    assert (head.status_code, head.data, head.headers["ETag"]) == (200, b"", got.headers["ETag"])


def test_a_wrong_name_redirects_to_the_right_name(client: FlaskClient) -> None:
    answer = client.get(f"/nix/store/{hash_part('x-1.0')}-y/bin{QUERY}")
    assert (answer.status_code, answer.headers["Location"]) == (302, f"{ROOT}/bin{QUERY}")


def test_errors_are_json_if_accept_asks_for_json(client: FlaskClient) -> None:
    accept = {"Accept": "application/json"}
    missing = client.get(f"/nix/store/{hash_part('none')}{QUERY}", headers=accept)
    assert (missing.status_code, missing.headers["Content-Type"]) == (404, "application/json")
    assert missing.headers["Vary"] == "Accept"
    assert set(json.loads(missing.data)) == {"error", "detail"}
    unknown = client.get(f"{ROOT}?format=narinfos", headers=accept)
    assert (unknown.status_code, "narinfo," in unknown.get_json()["detail"]) == (400, True)
