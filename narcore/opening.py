"""Opens the disk cache and the shared tier as the settings say, for ``BinaryCache.from_settings``."""

import logging

from narcore.cache.narcache import NarCache
from narcore.errors import CacheFailure, SettingsError
from narcore.settings import Settings
from narcore.stores.waits import StoreWaits
from narcore.tier.reader import TierReader
from narcore.tier.uploads import TierUploads
from narcore.tier.writer import TierWriter
from narcore.trace import Trace

log = logging.getLogger("narcore")


def open_tier(
    settings: Settings, *, trace: Trace, waits: StoreWaits | None
) -> tuple[TierReader | None, TierUploads | None]:
    """Return the reader and the uploads of the shared tier; None for each that is not configured. Raises SettingsError."""
    url, keys, secret_key = settings.tier_url, settings.tier_public_keys, settings.tier_secret_key
    if not url:
        return None, None
    try:
        reader = TierReader.open(url, keys, trace=trace, waits=waits)
        if not settings.tier_write or secret_key is None:
            return reader, None
        return reader, TierUploads(TierWriter.open(url, secret_key, keys))
    except SettingsError as error:
        raise SettingsError(f"NAR_TIER_URL: {error}") from error


def open_cache(
    settings: Settings, *, strict: bool, patience: float, trace: Trace, waits: StoreWaits | None
) -> NarCache | None:
    """Return the disk cache; None if it is off or unusable. With ``strict``, raises SettingsError instead of returning None."""
    directory = settings.cache_dir
    if directory is None:
        if strict:
            raise SettingsError("serving only verified NARs needs a disk cache, and NAR_CACHE_DIR=off turns it off")
        return None
    size, max_fills = settings.cache_size.in_bytes, settings.max_fills
    try:
        return NarCache(directory, size=size, max_fills=max_fills, patience=patience, trace=trace, waits=waits)
    except CacheFailure as error:
        if strict:
            requester = "NAR_VERIFY=strict" if settings.verify == "strict" else "a mount"  # a mount sets ``strict``
            raise SettingsError(f"{requester} needs a cache directory; {directory}: {error}") from error
        log.warning("caching is off: %s: %s", directory, error)
        return None
