"""The settings, read from the environment and checked once, at startup."""

import difflib
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Literal, Self, TypeVar

from narcore.errors import FormatError, SettingsError
from narcore.formats.signature import PublicKey, SecretKey, parse_public_keys
from narcore.stores.buckets.url import BucketUrl

DEFAULT_CACHE_URL = "https://cache.nixos.org"
DEFAULT_PUBLIC_KEY = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY="
STRATEGIES: tuple[Literal["ordered", "parallel"], ...] = ("ordered", "parallel")
LOG_FORMATS: tuple[Literal["text", "json"], ...] = ("text", "json")
VERIFY_MODES: tuple[Literal["stream", "strict"], ...] = ("stream", "strict")
SWITCH = {"on": True, "1": True, "off": False, "0": False}
NAMES = frozenset(
    {
        "NAR_CACHE_DIR",
        "NAR_CACHE_SIZE",
        "NAR_CACHE_STRATEGY",
        "NAR_CACHE_URL",
        "NAR_LOG_FORMAT",
        "NAR_MAX_CONNECTIONS",
        "NAR_MAX_FILLS",
        "NAR_MAX_NAR_SIZE",
        "NAR_MAX_RESPONSE",
        "NAR_METRICS",
        "NAR_MOUNT_DEADLINE",
        "NAR_MOUNT_EARLY",
        "NAR_OFFLOAD_URL",
        "NAR_RUN_DIR",
        "NAR_STOP_SECONDS",
        "NAR_THREADS",
        "NAR_TIER_PUBLIC_KEYS",
        "NAR_TIER_SECRET_KEY",
        "NAR_TIER_URL",
        "NAR_TIER_WRITE",
        "NAR_TRUSTED_PROXIES",
        "NAR_TRUSTED_PUBLIC_KEYS",
        "NAR_VERIFY",
        "NAR_WORKERS",
    }
)

# The serverless platforms Vercel and AWS Lambda set these variables. On these platforms only the temporary directory is writable.
# It has about 512 MB and belongs to this program alone, so the cache may use a large share of it.
SERVERLESS = ("VERCEL", "AWS_LAMBDA_FUNCTION_NAME")

Network = IPv4Network | IPv6Network

_NUMBER = re.compile(r"[0-9]{1,9}")
_HOST = re.compile(r"[^\s\[\]:]*|\[[^\s\[\]]+\]")  # a name, an IPv4 address, an IPv6 address in brackets, or nothing
_SIZE = re.compile(r"([0-9]{1,15})([KMGT]?)(?:i?B)?", re.IGNORECASE)
_PERCENT = re.compile(r"([0-9]{1,3})%")


@dataclass(frozen=True, slots=True)
class CacheSize:
    """The size limit of the disk cache: in bytes, or as a percentage of its file system."""

    amount: int = 0
    percent: int = 10

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``20G`` (powers of 1024) or ``10%``. Raises SettingsError if ``text`` is neither."""
        match = _PERCENT.fullmatch(text)
        if match and 0 < int(match[1]) <= 100:
            return cls(percent=int(match[1]))
        return cls(amount=_size("NAR_CACHE_SIZE", text, also="10%"), percent=0)

    def in_bytes(self, directory: Path) -> int:
        """Return the limit in bytes for a cache at ``directory``. Raises OSError if the file system can't be queried."""
        if self.amount:
            return self.amount
        status = os.statvfs(directory)
        return status.f_frsize * status.f_blocks * self.percent // 100


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of an installation. An empty ``host`` means every interface; ``cache_urls`` is never empty."""

    host: str = ""
    port: int = 8383
    domain: str = ""
    cache_urls: tuple[str, ...] = (DEFAULT_CACHE_URL,)
    cache_strategy: Literal["ordered", "parallel"] = "ordered"
    trusted_public_keys: tuple[PublicKey, ...] = ()
    log_format: Literal["text", "json"] = "text"
    verify: Literal["stream", "strict"] = "stream"
    cache_dir: Path | None = None
    cache_size: CacheSize = CacheSize()
    max_fills: int = 4
    max_nar_size: int | None = None
    max_response: int | None = None
    offload_url: str = ""
    tier_url: str = ""
    tier_public_keys: tuple[PublicKey, ...] = ()
    tier_secret_key: SecretKey | None = None
    tier_write: bool = False
    workers: int = 2
    threads: int = 32
    max_connections: int | None = None  # per worker process; None: as many as the limit on open files allows
    stop_seconds: int = 60
    metrics: bool = False
    trusted_proxies: tuple[Network, ...] = ()
    run_dir: Path = Path("/run/nar-serve")
    mount_early: bool = False
    mount_deadline: int = 30
    warnings: tuple[str, ...] = ()

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Self:
        """Read the settings from the environment. An empty variable counts as not set.

        Raises SettingsError, with one line that names the variable and says what is wrong or which values are valid.
        """
        given = {name: value.strip() for name, value in environ.items() if value.strip()}
        host, port = _address(given)
        cache_dir, verify = _cache_dir(given), _one_of("NAR_VERIFY", VERIFY_MODES, given)
        if verify == "strict" and cache_dir is None:
            raise SettingsError("NAR_VERIFY=strict needs the disk cache, and NAR_CACHE_DIR=off turns it off")
        if "NAR_OFFLOAD_URL" in given and cache_dir is None:
            raise SettingsError("NAR_OFFLOAD_URL needs the disk cache, and NAR_CACHE_DIR=off turns it off")
        tier_keys, tier_secret_key = _tier_keys(given)
        return cls(
            host=host,
            port=port,
            domain=_domain(given.get("DOMAIN", "")),
            cache_urls=_cache_urls(given),
            cache_strategy=_one_of("NAR_CACHE_STRATEGY", STRATEGIES, given),
            trusted_public_keys=_trusted_public_keys(given),
            log_format=_one_of("NAR_LOG_FORMAT", LOG_FORMATS, given),
            verify=verify,
            cache_dir=cache_dir,
            cache_size=CacheSize.parse(given.get("NAR_CACHE_SIZE", "80%" if _is_serverless(given) else "10%")),
            max_fills=_count("NAR_MAX_FILLS", given.get("NAR_MAX_FILLS", str(2 * (os.cpu_count() or 1)))),
            max_nar_size=_size_or_none("NAR_MAX_NAR_SIZE", given),
            max_response=_size_or_none("NAR_MAX_RESPONSE", given),
            offload_url=_offload_url(given.get("NAR_OFFLOAD_URL", "")),
            tier_url=given.get("NAR_TIER_URL", ""),
            tier_public_keys=tier_keys,
            tier_secret_key=tier_secret_key,
            tier_write=_tier_write(given, cache_dir),
            workers=_count("NAR_WORKERS", given.get("NAR_WORKERS", "2")),
            threads=_count("NAR_THREADS", given.get("NAR_THREADS", "32")),
            max_connections=_max_connections(given),
            stop_seconds=_count("NAR_STOP_SECONDS", given.get("NAR_STOP_SECONDS", "60")),
            metrics=_switch("NAR_METRICS", given),
            trusted_proxies=_networks("NAR_TRUSTED_PROXIES", given.get("NAR_TRUSTED_PROXIES", "")),
            run_dir=_run_dir(given),
            mount_early=_switch("NAR_MOUNT_EARLY", given),
            mount_deadline=_count("NAR_MOUNT_DEADLINE", given.get("NAR_MOUNT_DEADLINE", "30")),
            warnings=tuple(_unknown(name) for name in sorted(given) if name.startswith("NAR_") and name not in NAMES),
        )


def _address(given: Mapping[str, str]) -> tuple[str, int]:
    """Return host and port; HTTP_ADDR takes precedence over PORT."""
    if "HTTP_ADDR" not in given:
        return "", _port("PORT", given.get("PORT", "8383"))
    return parse_address("HTTP_ADDR", given["HTTP_ADDR"])


def parse_address(name: str, text: str) -> tuple[str, int]:
    """Parse ``host:port``, ``:port`` (an empty host) or ``[v6]:port``.

    Raises SettingsError, with a message that begins with ``name``, if ``text`` is none of these.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not _HOST.fullmatch(host):
        raise SettingsError(f"{name}={text!r} is not host:port; try 127.0.0.1:8383, [::1]:8383 or :8383")
    return host.strip("[]"), _port(name, port)


def _port(name: str, text: str) -> int:
    if not (_NUMBER.fullmatch(text) and int(text) <= 65535):
        raise SettingsError(f"{name}: {text!r} is not a port; use a number from 0 to 65535 (0: any free port)")
    return int(text)


def _cache_urls(given: Mapping[str, str]) -> tuple[str, ...]:
    """Return the URLs in NAR_CACHE_URL, or in NIX_CACHE_URL, its name in the Go program. Opening a store checks its URL."""
    text = given.get("NAR_CACHE_URL") or given.get("NIX_CACHE_URL") or DEFAULT_CACHE_URL
    return tuple(dict.fromkeys(text.split()))


def _domain(text: str) -> str:
    """Return DOMAIN in lower case, for comparisons. Each store path has the host name ``<hash>.DOMAIN``."""
    name = text.lower().strip(".")
    if text and not re.fullmatch(r"[a-z0-9-]{1,63}(\.[a-z0-9-]{1,63})*", name):
        raise SettingsError(f"DOMAIN={text!r} is not a host name; use a name such as nar.example.org, without a port")
    return name


def _trusted_public_keys(given: Mapping[str, str]) -> tuple[PublicKey, ...]:
    """Parse keys separated by white space, as in nix.conf.

    The default is the key of the default store if this is the only store, and otherwise no key.
    """
    urls = {url.partition("?")[0].rstrip("/").lower() for url in _cache_urls(given)}
    default = DEFAULT_PUBLIC_KEY if urls == {DEFAULT_CACHE_URL} else ""
    try:
        return parse_public_keys(given.get("NAR_TRUSTED_PUBLIC_KEYS", default))
    except FormatError as error:
        raise SettingsError(f"NAR_TRUSTED_PUBLIC_KEYS: {error}; write each key as <name>:<base64>") from error


Choice = TypeVar("Choice", bound=str)


def _one_of(name: str, choices: tuple[Choice, ...], given: Mapping[str, str]) -> Choice:
    """Return the value of the variable, which must be one of ``choices``; the first choice is the default."""
    text = given.get(name, choices[0])
    for choice in choices:
        if text == choice:
            return choice
    raise SettingsError(f"{name}={text!r} is not valid; use one of {', '.join(choices)}")


def _count(name: str, text: str) -> int:
    if not (_NUMBER.fullmatch(text) and 0 < int(text) <= 10_000):
        raise SettingsError(f"{name}={text!r} is not a number from 1 to 10000")
    return int(text)


def _max_connections(given: Mapping[str, str]) -> int | None:
    text = given.get("NAR_MAX_CONNECTIONS")
    if text is None:
        return None
    if not (_NUMBER.fullmatch(text) and int(text) > 0):
        raise SettingsError(f"NAR_MAX_CONNECTIONS={text!r} is not a number of connections; use a number above 0")
    return int(text)


def _switch(name: str, given: Mapping[str, str]) -> bool:
    text = given.get(name, "off")
    if text not in SWITCH:
        raise SettingsError(f"{name}={text!r} is not valid; use on (1) or off (0)")
    return SWITCH[text]


def _networks(name: str, text: str) -> tuple[Network, ...]:
    """Parse addresses and networks (CIDR), separated by white space or commas."""
    try:
        return tuple(ip_network(word) for word in text.replace(",", " ").split())
    except ValueError as error:
        raise SettingsError(f"{name}: {error}; use addresses or networks, such as 127.0.0.1 or 10.0.0.0/8") from error


def _size(name: str, text: str, *, also: str = "") -> int:
    match = _SIZE.fullmatch(text)
    size = int(match[1]) << 10 * " KMGT".index(match[2].upper() or " ") if match else 0
    if not size:
        raise SettingsError(
            f"{name}={text!r} is not a size; use bytes, such as 500M or 20G" + (f", or {also}" if also else "")
        )
    return size


def _size_or_none(name: str, given: Mapping[str, str]) -> int | None:
    return _size(name, given[name]) if name in given else None


def _offload_url(text: str) -> str:
    if not text:
        return ""
    try:
        bucket = BucketUrl.parse(text)
    except SettingsError as error:
        raise SettingsError(f"NAR_OFFLOAD_URL: {error}") from error
    if bucket.scheme != "s3":
        raise SettingsError(f"NAR_OFFLOAD_URL={str(bucket)!r} is not an S3 bucket; write s3://bucket/prefix")
    return text


def _tier_keys(given: Mapping[str, str]) -> tuple[tuple[PublicKey, ...], SecretKey | None]:
    """Return the public keys and the secret key of the shared tier. The public keys include that of the secret key."""
    try:
        public = parse_public_keys(given.get("NAR_TIER_PUBLIC_KEYS", ""))
    except FormatError as error:
        raise SettingsError(f"NAR_TIER_PUBLIC_KEYS: {error}; write each key as <name>:<base64>") from error
    try:
        secret = SecretKey.parse(given["NAR_TIER_SECRET_KEY"]) if "NAR_TIER_SECRET_KEY" in given else None
    except FormatError as error:
        how = "make one with nix-store --generate-binary-cache-key"
        raise SettingsError(f"NAR_TIER_SECRET_KEY: {error}; {how}") from error
    keys = public if secret is None else tuple(dict.fromkeys((*public, secret.public_key)))
    if "NAR_TIER_URL" in given and not keys:
        raise SettingsError("NAR_TIER_URL needs NAR_TIER_PUBLIC_KEYS, the keys that sign the indexes of the tier")
    if "NAR_TIER_URL" in given and not _trusted_public_keys(given):
        raise SettingsError("NAR_TIER_URL needs NAR_TRUSTED_PUBLIC_KEYS: the tier is used only for signed store paths")
    return keys, secret


def _tier_write(given: Mapping[str, str], cache_dir: Path | None) -> bool:
    """Return NAR_TIER_WRITE. Raises SettingsError if it is on and another setting that it needs is missing."""
    write = _switch("NAR_TIER_WRITE", given)
    for name in ("NAR_TIER_URL", "NAR_TIER_SECRET_KEY"):
        if write and name not in given:
            raise SettingsError(f"NAR_TIER_WRITE=on needs {name}")
    if write and cache_dir is None:
        raise SettingsError("NAR_TIER_WRITE=on needs the disk cache, and NAR_CACHE_DIR=off turns it off")
    return write


def _is_serverless(given: Mapping[str, str]) -> bool:
    return any(name in given for name in SERVERLESS)


def _cache_dir(given: Mapping[str, str]) -> Path | None:
    """Return NAR_CACHE_DIR, or the cache directory of the platform, the service manager or the user; None if the cache is off."""
    chosen = given.get("NAR_CACHE_DIR")
    if chosen == "off":
        return None
    if chosen:
        return Path(chosen).absolute()
    if _is_serverless(given):
        return Path(tempfile.gettempdir()) / "nar-serve"
    for name, below in (("CACHE_DIRECTORY", "."), ("XDG_CACHE_HOME", "nar-serve"), ("HOME", ".cache/nar-serve")):
        if given.get(name, "").startswith("/"):
            return Path(given[name]) / below
    return Path(tempfile.gettempdir()) / f"nar-serve-{os.getuid()}"


def _run_dir(given: Mapping[str, str]) -> Path:
    """Return NAR_RUN_DIR, the directory for sockets and state that need not survive a reboot.

    The default is the runtime directory of the service manager, the system or the user.
    """
    if "NAR_RUN_DIR" in given:
        return Path(given["NAR_RUN_DIR"]).absolute()
    service = given.get("RUNTIME_DIRECTORY", "").partition(":")[
        0
    ]  # systemd.exec(5): colons separate several directories
    if service.startswith("/"):
        return Path(service)
    if os.geteuid() == 0 and os.access("/run", os.W_OK):  # root in a user namespace may have no write access
        return Path("/run/nar-serve")
    if given.get("XDG_RUNTIME_DIR", "").startswith("/"):
        return Path(given["XDG_RUNTIME_DIR"]) / "nar-serve"
    return Path(tempfile.gettempdir()) / f"nar-serve-run-{os.getuid()}"


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, NAMES, n=1)
    return f"{name} is not a setting and has no effect" + (f"; did you mean {near[0]}?" if near else "")
