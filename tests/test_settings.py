import os
import re
import subprocess
import sys
from ipaddress import ip_network
from pathlib import Path
from tempfile import gettempdir

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.factory import create_app
from narcore.errors import SettingsError
from narcore.formats.signature import PublicKey, SecretKey
from narcore.lookup.substituter import Substituter
from narcore.settings import DEFAULT_CACHE_URL, DEFAULT_PUBLIC_KEY, NAMES, SERVERLESS, CacheSize, Settings

ONE, OTHER = SecretKey("one-1", b"1" * 32).public_key, SecretKey("other", b"2" * 32).public_key
SECRET = SecretKey("tier-1", b"3" * 32)


def test_an_empty_environment_gives_the_defaults() -> None:
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
    ids=["one", "two", "the same twice"],
)
def test_trusted_public_keys_are_separated_by_white_space(text: str, keys: tuple[object, ...]) -> None:
    assert Settings.from_environ({"NAR_TRUSTED_PUBLIC_KEYS": text}).trusted_public_keys == keys


def test_the_default_key_applies_only_to_the_default_store() -> None:
    for urls in ("https://cache.example", f"{DEFAULT_CACHE_URL} https://cache.example"):
        assert Settings.from_environ({"NAR_CACHE_URL": urls}).trusted_public_keys == ()
    given_keys = Settings.from_environ({"NAR_TRUSTED_PUBLIC_KEYS": str(ONE)}).trusted_public_keys
    assert given_keys == (ONE,)  # the default key is replaced


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
    ids=["a name", "no key", "space after the name", "commas", "trailing text", "truncated", "weak", "a secret key"],
)
def test_an_invalid_key_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(SettingsError, match="NAR_TRUSTED_PUBLIC_KEYS") as caught:
        Settings.from_environ({"NAR_TRUSTED_PUBLIC_KEYS": text})
    secret = text.partition(":")[2]
    assert len(secret) < 80 or secret not in str(caught.value)


@pytest.mark.parametrize(
    ("user", "writable", "environ", "directory"),
    [
        (0, True, {"XDG_RUNTIME_DIR": "/run/user/0"}, "/run/nar-serve"),
        (0, False, {"XDG_RUNTIME_DIR": "/run/user/1000"}, "/run/user/1000/nar-serve"),  # root in a user namespace
        (1000, False, {"XDG_RUNTIME_DIR": "/run/user/1000"}, "/run/user/1000/nar-serve"),
        (1000, False, {"XDG_RUNTIME_DIR": "relative"}, f"{gettempdir()}/nar-serve-run-1000"),
    ],
)
def test_the_run_dir_depends_on_the_user(
    user: int, writable: bool, environ: dict[str, str], directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(os, "getuid", lambda: user)
    monkeypatch.setattr(os, "access", lambda _path, _mode: writable)
    assert Settings.from_environ(environ).run_dir == Path(directory)


def test_a_misspelled_name_gives_a_warning() -> None:
    (warning,) = Settings.from_environ({"NAR_TRUSTED_PUBLIC_KEY": str(ONE)}).warnings
    assert "NAR_TRUSTED_PUBLIC_KEYS" in warning


# For each setting: valid values and their result, and invalid values and what the error must contain besides the name.

PROXIES = ("127.0.0.1", "10.0.0.0/8", "::1")
GOOD: list[tuple[dict[str, str], str, object]] = [
    ({"PORT": "80"}, "port", 80),
    ({"PORT": "0"}, "port", 0),
    ({"PORT": " 65535 "}, "port", 65535),
    ({"HTTP_ADDR": "127.0.0.1:1", "PORT": "2"}, "port", 1),
    ({"HTTP_ADDR": "127.0.0.1:1"}, "host", "127.0.0.1"),
    ({"HTTP_ADDR": ":9"}, "host", ""),
    ({"HTTP_ADDR": "[::1]:9"}, "host", "::1"),
    ({"HTTP_ADDR": "localhost:9"}, "host", "localhost"),
    ({"DOMAIN": "Nar.Example.ORG."}, "domain", "nar.example.org"),
    ({"DOMAIN": "localhost"}, "domain", "localhost"),
    ({"NAR_CACHE_URL": " a:b\tc:d\n a:b "}, "cache_urls", ("a:b", "c:d")),
    ({"NIX_CACHE_URL": "https://x"}, "cache_urls", ("https://x",)),
    ({"NIX_CACHE_URL": "https://x", "NAR_CACHE_URL": "https://y"}, "cache_urls", ("https://y",)),
    ({"NAR_CACHE_URL": f"{DEFAULT_CACHE_URL}/?priority=3"}, "trusted_public_keys", (PublicKey.parse(DEFAULT_PUBLIC_KEY),)),
    ({"NAR_CACHE_STRATEGY": "parallel"}, "cache_strategy", "parallel"),
    ({"NAR_VERIFY": "strict"}, "verify", "strict"),
    ({"NAR_LOG_FORMAT": "json"}, "log_format", "json"),
    ({"NAR_CACHE_DIR": "off"}, "cache_dir", None),
    ({"NAR_CACHE_DIR": "/x/y"}, "cache_dir", Path("/x/y")),
    ({"NAR_CACHE_DIR": "y"}, "cache_dir", Path.cwd() / "y"),
    ({"HOME": "/home/x"}, "cache_dir", Path("/home/x/.cache/nar-serve")),
    ({"HOME": "/home/x", "XDG_CACHE_HOME": "/c"}, "cache_dir", Path("/c/nar-serve")),
    ({"HOME": "/home/x", "XDG_CACHE_HOME": "c"}, "cache_dir", Path("/home/x/.cache/nar-serve")),
    ({"CACHE_DIRECTORY": "/var/cache/x", "XDG_CACHE_HOME": "/c"}, "cache_dir", Path("/var/cache/x")),
    ({"VERCEL": "1", "HOME": "/home/x"}, "cache_dir", Path(gettempdir()) / "nar-serve"),
    ({"NAR_CACHE_SIZE": "20G"}, "cache_size", CacheSize(20 << 30, 0)),
    ({"NAR_CACHE_SIZE": "500mb"}, "cache_size", CacheSize(500 << 20, 0)),
    ({"NAR_CACHE_SIZE": "12345"}, "cache_size", CacheSize(12345, 0)),
    ({"NAR_CACHE_SIZE": "3KiB"}, "cache_size", CacheSize(3072, 0)),
    ({"NAR_CACHE_SIZE": "100%"}, "cache_size", CacheSize(0, 100)),
    ({}, "cache_size", CacheSize(0, 10)),
    ({"AWS_LAMBDA_FUNCTION_NAME": "x"}, "cache_size", CacheSize(0, 80)),
    ({"NAR_MAX_FILLS": "10000"}, "max_fills", 10_000),
    ({"NAR_MAX_NAR_SIZE": "1T"}, "max_nar_size", 1 << 40),
    ({"NAR_MAX_RESPONSE": "4M"}, "max_response", 4 << 20),
    ({"NAR_OFFLOAD_URL": "s3://b/x", "HOME": "/x"}, "offload_url", "s3://b/x"),
    ({"NAR_TIER_URL": "s3://b/x", "NAR_TIER_PUBLIC_KEYS": str(ONE)}, "tier_url", "s3://b/x"),
    ({"NAR_TIER_URL": "s3://b/x", "NAR_TIER_SECRET_KEY": SECRET.to_text()}, "tier_public_keys", (SECRET.public_key,)),
    ({"NAR_TIER_PUBLIC_KEYS": f"{SECRET.public_key} {ONE}"}, "tier_public_keys", (SECRET.public_key, ONE)),
    ({"NAR_TIER_SECRET_KEY": SECRET.to_text()}, "tier_secret_key", SECRET),
    ({"NAR_TIER_WRITE": "on", "NAR_TIER_URL": "s3://b", "NAR_TIER_SECRET_KEY": SECRET.to_text(), "HOME": "/x"}, "tier_write", True),
    ({}, "tier_write", False),
    ({"NAR_WORKERS": "1"}, "workers", 1),
    ({"NAR_THREADS": "007"}, "threads", 7),
    ({"NAR_MAX_CONNECTIONS": "20000"}, "max_connections", 20_000),
    ({}, "max_connections", None),
    ({"NAR_STOP_SECONDS": "5"}, "stop_seconds", 5),
    ({"NAR_METRICS": "on"}, "metrics", True),
    ({"NAR_METRICS": "0"}, "metrics", False),
    ({"NAR_RUN_DIR": "/x/y"}, "run_dir", Path("/x/y")),
    ({"NAR_RUN_DIR": "y", "RUNTIME_DIRECTORY": "/run/z"}, "run_dir", Path.cwd() / "y"),
    ({"RUNTIME_DIRECTORY": "/run/x:/run/y", "XDG_RUNTIME_DIR": "/z"}, "run_dir", Path("/run/x")),
    ({}, "mount_early", False),
    ({"NAR_MOUNT_EARLY": "on"}, "mount_early", True),
    ({"NAR_MOUNT_DEADLINE": "5"}, "mount_deadline", 5),
    ({"NAR_TRUSTED_PROXIES": "127.0.0.1, 10.0.0.0/8 ::1"}, "trusted_proxies", tuple(map(ip_network, PROXIES))),
]  # fmt: skip

BAD: list[tuple[dict[str, str], str]] = [
    *(({"PORT": text}, "from 0 to 65535") for text in ("x", "-1", "65536", "80a", "8 0", "\u0664", "00000099999", "9" * 30)),
    *(({"HTTP_ADDR": text}, "127.0.0.1:8383") for text in ("127.0.0.1", "::1:80", "[::1:80", "::1]:80", "a b:80", "http://x:80")),
    *(({"HTTP_ADDR": text}, "from 0 to 65535") for text in ("localhost:", "x:http", ":65536")),
    *(({"DOMAIN": text}, "nar.example.org") for text in ("https://x", "x:80", "a_b", "a..b", "*.x", "x/y", "b\u00fccher.x", ".")),
    *(({"NAR_CACHE_STRATEGY": text}, "ordered, parallel") for text in ("Parallel", "both")),
    *(({"NAR_VERIFY": text}, "stream, strict") for text in ("no", "STRICT")),
    ({"NAR_VERIFY": "strict", "NAR_CACHE_DIR": "off"}, "NAR_CACHE_DIR=off"),
    ({"NAR_LOG_FORMAT": "xml"}, "text, json"),
    *(({"NAR_CACHE_SIZE": text}, "20G, or 10%") for text in ("0", "0%", "101%", "-1G", "1.5G", "1P", "10 G", "all", "\u0664G")),
    *(({"NAR_MAX_NAR_SIZE": text}, "20G") for text in ("0", "10%", "none", "1e9")),
    *(({"NAR_MAX_RESPONSE": text}, "20G") for text in ("0", "4.5M")),
    *(
        ({name: text}, "from 1 to 10000")
        for name in ("NAR_MAX_FILLS", "NAR_WORKERS", "NAR_THREADS", "NAR_STOP_SECONDS", "NAR_MOUNT_DEADLINE")
        for text in ("0", "-1", "10001", "0000019999999", "x", "1.5")
    ),
    *(({"NAR_MAX_CONNECTIONS": text}, "a number above 0") for text in ("0", "-1", "x", "1.5", "0000019999999")),
    *(({"NAR_OFFLOAD_URL": text, "HOME": "/x"}, "s3://") for text in ("https://x", "gs://x", "x")),
    ({"NAR_OFFLOAD_URL": "s3://x", "NAR_CACHE_DIR": "off"}, "NAR_CACHE_DIR=off"),
    ({"NAR_TIER_URL": "s3://b"}, "NAR_TIER_PUBLIC_KEYS"),
    ({"NAR_TIER_URL": "s3://b", "NAR_TIER_PUBLIC_KEYS": str(ONE), "NAR_CACHE_URL": "https://x"}, "NAR_TRUSTED_PUBLIC_KEYS"),
    ({"NAR_TIER_PUBLIC_KEYS": f"{ONE} two-1:abc"}, "number 2, 'two-1'"),
    ({"NAR_TIER_SECRET_KEY": str(ONE)}, "generate-binary-cache-key"),
    ({"NAR_TIER_WRITE": "yes"}, "on (1) or off (0)"),
    ({"NAR_TIER_WRITE": "on"}, "needs NAR_TIER_URL"),
    ({"NAR_TIER_WRITE": "on", "NAR_TIER_URL": "s3://b", "NAR_TIER_PUBLIC_KEYS": str(ONE)}, "needs NAR_TIER_SECRET_KEY"),
    *(({"NAR_METRICS": text}, "on (1) or off (0)") for text in ("true", "yes", "ON")),
    *(({"NAR_MOUNT_EARLY": text}, "on (1) or off (0)") for text in ("true", "OFF")),
    *(({"NAR_TRUSTED_PROXIES": text}, "10.0.0.0/8") for text in ("proxy.example", "10.0.0.1/8", "10.0.0.0/33", "*")),
    ({"NAR_TRUSTED_PUBLIC_KEYS": f"{ONE} two-1:abc"}, "number 2, 'two-1'"),
]  # fmt: skip


@pytest.mark.parametrize(("environ", "name", "value"), GOOD, ids=lambda value: str(value)[:40])
def test_a_valid_value_is_read(environ: dict[str, str], name: str, value: object) -> None:
    settings = Settings.from_environ(environ)
    assert getattr(settings, name) == value
    assert not settings.warnings


@pytest.mark.parametrize(("environ", "hint"), BAD, ids=lambda value: str(value)[:60])
def test_an_invalid_value_is_refused_with_a_hint(environ: dict[str, str], hint: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_environ(environ)
    message = str(caught.value)
    ((name, value), *_) = environ.items()
    assert message.startswith(name)
    assert hint in message
    assert "\n" not in message
    # The message shows the invalid part of the value, but no key except for its name, and no secret in a URL.
    secret = (
        "NAR_TRUSTED_PUBLIC_KEYS",
        "NAR_OFFLOAD_URL",
        "NAR_TIER_URL",
        "NAR_TIER_PUBLIC_KEYS",
        "NAR_TIER_SECRET_KEY",
    )
    if name not in secret:
        assert repr(value.rpartition(":")[2])[1:-1] in message


def test_every_setting_is_tested() -> None:
    tested = {name for environ in [row[0] for row in GOOD] + [row[0] for row in BAD] for name in environ}
    assert tested >= NAMES | {"PORT", "HTTP_ADDR", "DOMAIN", "NIX_CACHE_URL"}


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("NAR_CACHE_URLS", "NAR_CACHE_URL"),
        ("NAR_MAX_FILL", "NAR_MAX_FILLS"),
        ("NAR_LOGFORMAT", "NAR_LOG_FORMAT"),
        ("NAR_XYZZY", ""),
    ],
)
def test_unknown_names_are_logged_at_startup(name: str, meant: str, caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings.from_environ({name: "x", "NAR_CACHE_DIR": "off"})
    create_app(settings)
    (line,) = caplog.messages
    assert line.startswith(name)
    assert f"did you mean {meant}?" in line if meant else "did you mean" not in line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environ", "start"),
    [
        ({"NAR_TRUSTED_PUBLIC_KEYS": "x"}, "nar-serve: NAR_TRUSTED_PUBLIC_KEYS: "),
        ({"NAR_CACHE_URL": "ftp://x"}, "nar-serve: NAR_CACHE_URL: not a store URL: 'ftp://x'"),
        ({"NAR_CACHE_URL": "https://x?priority=high"}, "nar-serve: NAR_CACHE_URL: "),
        ({"NAR_CACHE_URL": "https://user:secret@x:port/"}, "nar-serve: NAR_CACHE_URL: "),
        ({"NAR_CACHE_STRATEGY": "x"}, "nar-serve: NAR_CACHE_STRATEGY='x' "),
    ],
)
def test_an_invalid_setting_stops_the_startup_with_one_line(environ: dict[str, str], start: str) -> None:
    environ = {"PATH": os.environ["PATH"], "NAR_CACHE_DIR": "off"} | environ
    done = subprocess.run([sys.executable, "-c", "import api.index"], env=environ, capture_output=True, check=False)
    assert done.returncode == 3  # with any other status, gunicorn would restart the worker forever
    (line,) = (line for line in done.stderr.decode().splitlines() if "is not set" not in line)
    assert line.startswith(start)
    assert "secret" not in line


def test_a_warning_is_logged_if_signatures_are_not_checked(caplog: pytest.LogCaptureFixture) -> None:
    create_app(Settings.from_environ({"NAR_CACHE_DIR": "off"}))
    assert not caplog.messages
    create_app(Settings.from_environ({"NAR_CACHE_DIR": "off", "NAR_CACHE_URL": f"{DEFAULT_CACHE_URL} https://x"}))
    (line,) = caplog.messages
    assert line.startswith("NAR_TRUSTED_PUBLIC_KEYS is not set")


# Parts of values, so that some generated values are nearly valid.
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
    except SettingsError as error:
        message = str(error)
    else:
        check(settings)
        return
    assert "\n" not in message
    assert any(name in message for name in environ)


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
def test_query_parameters_of_a_store_url_are_read(query: str, priority: int, trusted: bool) -> None:
    substituter = Substituter.open(f"/cache{query}")
    assert (substituter.priority, substituter.trusted, substituter.url) == (priority, trusted, "file:///cache")


@pytest.mark.parametrize(
    "query", ["priority=-1", "priority=high", "priority=1e3", "priority=\u0664", "trusted=yes", "trusted=", "trusted"]
)
def test_an_invalid_query_parameter_of_a_store_url_is_refused(query: str) -> None:
    with pytest.raises(SettingsError, match=query.partition("=")[0]):
        Substituter.open(f"https://cache.example?{query}")
