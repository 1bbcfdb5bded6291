"""No answer that rests on a wrong listing claims to be verified; answers from the verified NAR are right."""

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from narcore.nars import source
from narcore.stores.memory import MemoryStore
from tests.api.falselistings import (
    LIES,
    PADDING,
    TRUE,
    UNVERIFIED,
    Asked,
    GatedStore,
    ask,
    assert_honest,
    cached,
    entries_of,
    files_of,
    requests,
    requests_about,
    serving,
    telling_the_truth,
)
from tests.builders import Tree, exe, hash_part

ROOT = f"/nix/store/{hash_part('x')}-x"


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlaskClient]:
    with telling_the_truth(tmp_path_factory.mktemp("truth")) as client:
        yield client


@pytest.mark.parametrize("lie", LIES)
def test_an_answer_from_a_false_listing_does_not_claim_to_be_verified(
    truth: FlaskClient, tmp_path: Path, lie: str
) -> None:
    """Each request goes to a new server, which has seen nothing but the false listing. By range, with a disk cache."""
    for number, asked in enumerate(requests_about(LIES[lie])):
        with serving(MemoryStore(files_of(LIES[lie], "none")), tmp_path / str(number)) as client:
            assert_honest(ask(client, asked), ask(truth, asked), asked)


@pytest.mark.parametrize("lie", LIES)
def test_an_answer_while_the_nar_arrives_does_not_claim_to_be_verified(
    truth: FlaskClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    monkeypatch.setattr(source, "ARRIVAL_SECONDS", 0.01)
    store = GatedStore(files_of(LIES[lie], "zstd"))
    with serving(store, tmp_path / "nars") as client:
        store.gate.clear()
        reader = threading.Thread(target=ask, args=(client, Asked(f"{ROOT}/zero")))
        reader.start()
        assert store.begun.wait(10)
        asked = [each for each in requests_about(LIES[lie]) if rests_on_listing(each, LIES[lie])]
        answers = [(each, ask(client, each)) for each in asked]
        store.gate.set()
        reader.join()
    for each, got in answers:
        assert_honest(got, ask(truth, each), each)
        assert got is not None
        assert not got.claims


def rests_on_listing(asked: Asked, lie: Mapping[str, Tree]) -> bool:
    """Return whether no bytes are needed. Requests for an empty file wait for the NAR, because the NAR is small."""
    empty = {path.removesuffix("/index.html") for path, entry in entries_of(lie) if entry in (b"", exe(b""))}
    path = asked.url.partition("?")[0].removeprefix(ROOT)
    return (asked.method == "HEAD" or "format=json" in asked.url) and not path.startswith(tuple(empty))


@pytest.mark.parametrize("lie", LIES)
def test_every_answer_from_the_verified_nar_is_right(truth: FlaskClient, tmp_path: Path, lie: str) -> None:
    with serving(MemoryStore(files_of(LIES[lie], "zstd")), tmp_path / "nars") as client:
        old = {each: got for each in requests_about(LIES[lie]) if each.method == "HEAD" and (got := ask(client, each))}
        cached(client)
        for asked in requests_about(LIES[lie]):
            assert ask(client, asked) == ask(truth, asked)
        for asked, got in old.items():
            again = ask(client, asked._replace(headers=(("If-None-Match", got.etag or '""'),)))
            assert again is not None
            assert (again.content[0] == 304) == (got.etag is not None and got.etag == again.etag), asked


FOREVER = "public, max-age=31536000, immutable"
PAGE = "public, max-age=600, stale-while-revalidate=86400"


def test_verification_changes_only_the_lifetime_and_the_word_content(tmp_path: Path) -> None:
    """With a true listing, the ETags of an unverified answer, of a verified one, and of another instance are the same."""
    lifetimes = set()
    with telling_the_truth(tmp_path / "truth", "none") as truth:
        answers = [(asked, ask(truth, asked)) for asked in requests(TRUE)]
    for number, (asked, true) in enumerate(answers):
        with serving(MemoryStore(files_of(TRUE, "none")), tmp_path / str(number)) as client:
            first = ask(client, asked)
        assert first is not None
        assert true is not None
        assert (first.content, first.etag) == (true.content, true.etag), asked
        if true.content[0] == 416:
            continue
        assert true.cache_control in (PAGE, FOREVER)
        assert first.cache_control in (UNVERIFIED, true.cache_control)
        assert (first.cache_control == UNVERIFIED) == (first.checks == "")
        assert true.checks == "content"
        lifetimes.add(first.cache_control)
    assert lifetimes == {UNVERIFIED, PAGE, FOREVER}


def test_a_listing_waits_a_moment_for_the_nar_that_arrives(
    truth: FlaskClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "ARRIVAL_SECONDS", 30)
    store = GatedStore(files_of(LIES["a file is empty"], "zstd"))
    asked = Asked(f"{ROOT}/data?format=json")
    with serving(store, tmp_path / "nars") as client:
        store.gate.clear()
        reader = threading.Thread(target=ask, args=(client, Asked(f"{ROOT}/zero")))
        reader.start()
        assert store.begun.wait(10)
        with monkeypatch.context() as patched:
            patched.setattr(source, "SMALL_NAR", 0)  # as if many bytes were left: the answer does not wait
            early = ask(client, Asked(f"{ROOT}/dir?format=json"))
            assert early is not None
            assert early.cache_control == UNVERIFIED
        threading.Timer(0.1, store.gate.set).start()
        assert ask(client, asked) == ask(truth, asked)
        reader.join()


@pytest.mark.parametrize("disk", [True, False])
def test_an_empty_file_is_taken_from_the_nar_only_if_the_nar_is_small(
    truth: FlaskClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: bool
) -> None:
    store = GatedStore(files_of(LIES["a file is empty"], "zstd"))
    asked = Asked(f"{ROOT}/data")
    with serving(store, tmp_path / "nars" if disk else None) as client:
        monkeypatch.setattr(source, "SMALL_NAR", PADDING)
        got = ask(client, asked)
        assert got is not None
        assert (got.content[:2], got.cache_control, got.checks) == ((200, b""), UNVERIFIED, "")
        assert not store.begun.is_set()
        monkeypatch.setattr(source, "SMALL_NAR", 2 * PADDING)
        assert ask(client, asked) == ask(truth, asked)


def test_a_listing_is_answered_without_fetching_the_nar(tmp_path: Path) -> None:
    store = GatedStore(files_of(TRUE, "zstd"))
    with serving(store, tmp_path / "nars") as client:
        for path in ("/dir/?list", "/?format=json&recursive", "/nothing", "/link", "/dir"):
            got = ask(client, Asked(f"{ROOT}{path}"))
            assert got is not None
            assert got.cache_control == UNVERIFIED
        assert not store.begun.is_set()


def test_a_page_whose_readme_shows_that_the_listing_is_wrong_claims_nothing(truth: FlaskClient, tmp_path: Path) -> None:
    asked = Asked(f"{ROOT}/")
    with serving(MemoryStore(files_of(LIES["a file is empty"], "zstd")), tmp_path / "nars") as client:
        got = ask(client, asked)
        assert got is not None
        assert (got.cache_control, got.etag, got.checks) == ("no-store", None, "")
        assert ask(client, asked) == ask(truth, asked)


def test_strict_answers_come_from_the_verified_nar(truth: FlaskClient, tmp_path: Path) -> None:
    lie = LIES["a file is empty"]
    for number, asked in enumerate(requests_about(lie)):
        with serving(MemoryStore(files_of(lie, "zstd")), tmp_path / str(number), strict=True) as client:
            assert ask(client, asked) == ask(truth, asked)
