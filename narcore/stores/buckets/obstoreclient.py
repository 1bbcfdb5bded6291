"""Options and errors of the library obstore: whether it is installed, timeouts, retries, trusted certificates, error texts."""

import importlib.util
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from narcore.errors import FileNotInStore, SettingsError, StoreError, StoreForbidden, StoreUnavailable, how_to_install
from narcore.stores.cafile import ca_file
from narcore.version import __version__

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

_STATUS = re.compile(r"status code: (\d{3})")


class AccessDenied(FileNotInStore):
    """Status 403 for another reason than bad credentials: the file does not exist, or may not be read."""


def require_obstore(scheme: str) -> None:
    """Raise ``SettingsError`` if obstore is not installed. Does not import it; the first request does."""
    if importlib.util.find_spec("obstore") is None:
        raise SettingsError(
            f"{scheme}:// stores require obstore, which is not installed; {how_to_install('objectstore')}"
        )


def client_options(connect_timeout: float = 5.0, read_timeout: float = 30.0) -> "ClientConfig":
    """Return the options of a client. Times are in seconds. Raises ``StoreUnavailable`` if the CA bundle can't be read."""
    options: ClientConfig = {
        "allow_http": True,  # the URL of the endpoint decides between http and https
        "connect_timeout": timedelta(seconds=connect_timeout),
        "read_timeout": timedelta(seconds=read_timeout),
        "timeout": timedelta(days=7),  # the limit of a whole download: in effect none
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
    """Return the HTTP status in the text of an error of obstore, or None."""
    found = _STATUS.search(text)
    return int(found[1]) if found else None


def no_credentials(what: str, text: str) -> StoreError:
    """Return the error for a failure to get credentials. ``text`` is not passed on: it may contain a token."""
    status = status_of(text)
    if status is not None and 400 <= status < 500:
        return StoreForbidden(f"{what}: the service that provides the credentials refused, with status {status}")
    reason = f"answered with status {status}" if status else "did not answer"
    return StoreUnavailable(f"{what}: the service that provides the credentials {reason}")


@contextmanager
def opening(what: str, prefix: str) -> Iterator[None]:
    """Convert errors that obstore raises when a store is opened to ``StoreForbidden``, without their text."""
    from obstore.exceptions import BaseError

    try:
        yield
    except (BaseError, OSError, ValueError, TypeError):
        raise StoreForbidden(f"{what}: obstore rejected the settings; check the variables {prefix}*") from None
