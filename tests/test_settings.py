import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narcore.errors import SettingsError
from narcore.formats.signature import SecretKey
from narcore.settings import DEFAULT_CACHE_URL, DEFAULT_PUBLIC_KEY, NAMES, SERVERLESS, Settings
from narcore.substituter import Substituter

ONE, OTHER = SecretKey.generate("one-1").public_key, SecretKey.generate("other").public_key


def test_nothing_set() -> None:
    settings = Settings.from_environ({})
    assert settings.cache_urls == (DEFAULT_CACHE_URL,)
    assert [str(key) for key in settings.trusted_public_keys] == [DEFAULT_PUBLIC_KEY]
    assert settings == Settings.from_environ(dict.fromkeys(NAMES, " \t"))


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        (f"{ONE}", (ONE,)),
        (f"  {ONE}\n\t{OTHER} ", (ONE, OTHER)),
        (f"{ONE} {ONE}", (ONE, ONE)),
    ],
)
def test_trusted_public_keys(text: str, keys: tuple[object, ...]) -> None:
    assert Settings.from_environ({"NAR_TRUSTED_PUBLIC_KEYS": text}).trusted_public_keys == keys


def test_the_key_of_the_default_store_is_for_that_store_alone() -> None:
    for urls in ("https://cache.example", f"{DEFAULT_CACHE_URL} https://cache.example"):
        assert Settings.from_environ({"NAR_CACHE_URL": urls}).trusted_public_keys == ()
    given_keys = Settings.from_environ({"NAR_TRUSTED_PUBLIC_KEYS": str(ONE)}).trusted_public_keys
    assert given_keys == (ONE,)  # instead of the default one, not beside it


@pytest.mark.parametrize(
    "text",
    [
        "one-1",
        "one-1:",
        f"one-1: {str(ONE).partition(':')[2]}",
        f"{ONE},{OTHER}",
        f"{ONE} and more",
        str(ONE)[:-4],
        f"weak:{'A' * 43}=",
        SecretKey.generate("secret").to_text(),
    ],
    ids=["a name", "no key", "a space behind the name", "commas", "rubbish behind it", "cut", "weak", "a secret key"],
)
def test_a_key_that_is_none_ends_the_start(text: str) -> None:
    with pytest.raises(SettingsError, match="NAR_TRUSTED_PUBLIC_KEYS") as caught:
        Settings.from_environ({"NAR_TRUSTED_PUBLIC_KEYS": text})
    secret = text.partition(":")[2]
    assert len(secret) < 80 or secret not in str(caught.value)


def test_a_misspelt_name_is_warned_of() -> None:
    (warning,) = Settings.from_environ({"NAR_TRUSTED_PUBLIC_KEY": str(ONE)}).warnings
    assert "NAR_TRUSTED_PUBLIC_KEYS" in warning


# What the texts of settings are made of, so that some of them are nearly right.
words = st.sampled_from(
    ["https://x", "?trusted=true", " ", ":", "8383", "[::1]", "10%", "20G", "off", "strict", "parallel", "json", ".", "a", "-",
     "\u00e9", "\u0664", "\udcff", "%", "0", str(ONE)]
)  # fmt: skip
texts = st.text(st.characters(exclude_characters="\0")) | st.lists(words, max_size=5).map("".join)
environs = st.dictionaries(
    st.sampled_from(
        sorted({*NAMES, *SERVERLESS, "HTTP_ADDR", "PORT", "DOMAIN", "NIX_CACHE_URL", "XDG_CACHE_HOME", "HOME"})
    ),
    texts,
    max_size=4,
)


@given(environs)
def test_any_environment_is_read_or_refused(environ: dict[str, str]) -> None:
    try:
        settings = Settings.from_environ(environ)
    except SettingsError as refusal:
        said = str(refusal)
    else:
        check(settings)
        return
    assert "\n" not in said
    assert any(name in said for name in environ)


def check(settings: Settings) -> None:
    assert settings.cache_urls
    assert 0 <= settings.port <= 65535
    assert settings.max_fills > 0
    assert settings.max_nar_size is None or settings.max_nar_size > 0
    assert settings.cache_dir is None or isinstance(settings.cache_dir, Path)
    assert re.fullmatch(r"[a-z0-9.-]*", settings.domain)


url_words = st.sampled_from(
    ["https://", "http://", "file://", "/", "x", "host", ":", "80", "[", "]", "::1", "@", "?", "trusted=true", "priority=", "&",
     "%", "%ff", "%00", "#", ";", "..", "\u00e9", "\u0664", "\udcff", "\u2100", " ", "\\"]
)  # fmt: skip


@given(st.lists(url_words, max_size=8).map("".join) | st.text(st.characters(codec="utf-8", exclude_characters="\0")))
def test_any_store_url_is_opened_or_refused(url: str) -> None:
    try:
        substituter = Substituter.open(url)
    except SettingsError:
        return
    assert substituter.priority >= 0
    assert substituter.trusted in (True, False)
    substituter.store.close()


@pytest.mark.parametrize(
    ("query", "priority", "trusted"),
    [("", 50, False), ("?priority=0&trusted=1", 0, True), ("?trusted=true&priority=7&x=y", 7, True)],
)
def test_what_a_store_url_says_to_us(query: str, priority: int, trusted: bool) -> None:
    substituter = Substituter.open(f"/cache{query}")
    assert (substituter.priority, substituter.trusted, substituter.url) == (priority, trusted, "file:///cache")


@pytest.mark.parametrize(
    "query", ["priority=-1", "priority=high", "priority=1e3", "priority=\u0664", "trusted=yes", "trusted=", "trusted"]
)
def test_what_a_store_url_can_not_say(query: str) -> None:
    with pytest.raises(SettingsError, match=query.partition("=")[0]):
        Substituter.open(f"https://cache.example?{query}")
