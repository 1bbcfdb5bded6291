"""What every use of obstore has in common: that it is there, how long it may take, whom it trusts."""

import importlib.util
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from narcore.errors import FileNotInStore, SettingsError, StoreError, StoreForbidden, StoreUnavailable
from narcore.stores.cafile import ca_file
from narcore.version import __version__

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

_STATUS = re.compile(r"status code: (\d{3})")

INSTALL = "pip install 'nar-serve[objectstore]'"


class AccessDenied(FileNotInStore):
    """403, and the credentials are not named as the reason: the file is not there, or may not be read."""


def require_obstore(scheme: str) -> None:
    """Raises ``SettingsError`` where it is not installed. It is not imported here: the first request does that."""
    if importlib.util.find_spec("obstore") is None:
        raise SettingsError(f"{scheme}:// stores are read by obstore, which is not installed: {INSTALL}")


def client_options(connect_timeout: float = 5.0, read_timeout: float = 30.0) -> "ClientConfig":
    """Times in seconds. Raises ``StoreUnavailable`` if the bundle of certificates can't be read."""
    options: ClientConfig = {
        "allow_http": True,  # whether it is http or https stands in the URL of the endpoint
        "connect_timeout": timedelta(seconds=connect_timeout),
        "read_timeout": timedelta(seconds=read_timeout),
        "timeout": timedelta(days=7),  # that of a whole download: it is as long as it is
        "user_agent": f"nar-serve/{__version__}",
    }
    bundle = ca_file(os.environ)
    if bundle is not None:
        try:
            options["root_certificate"] = Path(bundle).read_bytes()
        except OSError as error:
            raise StoreUnavailable(f"the CA bundle {bundle} can't be read: {error.strerror}") from None
    return options


def retry_config(retries: int = 3) -> "RetryConfig":
    backoff = {"init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=2), "base": 2}
    return {"max_retries": retries, "retry_timeout": timedelta(seconds=10), "backoff": backoff}  # type: ignore[typeddict-item]


def status_of(text: str) -> int | None:
    """The HTTP status in the text of one of its errors."""
    found = _STATUS.search(text)
    return int(found[1]) if found else None


def no_credentials(what: str, text: str) -> StoreError:
    """An error of getting credentials. ``text`` is not passed on: it may hold a token."""
    status = status_of(text)
    if status is not None and 400 <= status < 500:
        return StoreForbidden(f"{what}: the service that gives the credentials refuses, with status {status}")
    reason = f"answers with status {status}" if status else "does not answer"
    return StoreUnavailable(f"{what}: the service that gives the credentials {reason}")


@contextmanager
def opening(what: str, prefix: str) -> Iterator[None]:
    """Makes a ``StoreForbidden`` of what obstore raises when a store is opened. Its text is not passed on."""
    from obstore.exceptions import BaseError

    try:
        yield
    except (BaseError, OSError, ValueError, TypeError):
        raise StoreForbidden(f"{what}: obstore refuses the settings: look at the variables {prefix}*") from None
