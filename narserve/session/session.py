"""The stores and instances that a command reads from, selected by the options, the environment and the targets."""

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Self
from urllib.parse import quote_from_bytes

import click

from narcore.binarycache import BinaryCache
from narcore.errors import SettingsError, SymlinkLoop
from narcore.formats.listing import Node
from narcore.formats.names import to_bytes
from narcore.formats.resolve import Elsewhere, Found, Inside, Outcome, resolve
from narcore.formats.storepath import DEFAULT_STORE_DIR, StorePath
from narcore.lookup.pathinfo import PathInfo
from narcore.nars.accessor import NarAccessor
from narcore.settings import Settings
from narserve.session.target import Target
from narserve.terminal.exits import print_message
from narserve.terminal.progress import patience

if TYPE_CHECKING:
    from narserve.session.instance import Instance

MAX_HOPS = 40  # links from one store path to another; Linux follows at most 40 links in one path, too

P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Opened:
    """A store path whose files can be read. ``info`` is set if it comes from a store, ``instance`` if from an instance."""

    store_path: StorePath
    accessor: NarAccessor
    info: PathInfo | None = None
    instance: "Instance | None" = None

    def name(self, path: str) -> str:
        """Return the PATH argument that names the node at ``path`` in this store path."""
        inside = f"/{path}" if path else ""
        if self.instance:
            return f"{self.instance.url}/{quote_from_bytes(to_bytes(self.store_path.base_name + inside))}"
        return f"{self.store_path}{inside}"


@dataclass(frozen=True, slots=True)
class LocatedNode:
    """A node, its store path, and its path in the store path (without a slash at either end; "" is the root)."""

    opened: Opened
    node: Node
    path: str

    @property
    def name(self) -> str:
        return self.opened.name(self.path)


class Session:
    """Opens stores and instances when they are first needed. A context manager that closes them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._caches: dict[str, BinaryCache] = {}
        self._instances: dict[str, Instance] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for cache in self._caches.values():
            cache.close()
        for instance in self._instances.values():
            instance.close()

    @property
    def cache(self) -> BinaryCache:
        """The BinaryCache over the stores."""
        return self._cache_at("", lambda: BinaryCache.from_settings(self.settings))

    def cache_of(self, target: Target) -> BinaryCache:
        """Return the BinaryCache over the stores, or over the instance that the target names."""
        return self._cache_at(target.home, lambda: self._open_cache(target, self.settings))

    def _cache_at(self, home: str, open_cache: Callable[[], BinaryCache]) -> BinaryCache:
        if home not in self._caches:
            self._caches[home] = open_cache()
        return self._caches[home]

    def _open_cache(self, target: Target, settings: Settings) -> BinaryCache:
        if not target.home:
            return BinaryCache.from_settings(settings)
        from narserve.session.instancestore import InstanceStore  # slow to import, see _instance

        store = InstanceStore(self._instance(target))
        return BinaryCache([store], trusted_keys=settings.trusted_public_keys, max_nar_size=settings.max_nar_size)

    def path_info(self, target: Target) -> PathInfo:
        """Return the path info, with a checked signature even if an instance sent it. Raises as ``BinaryCache.path_info`` does."""
        return self._of_instance(target, find_path_info(self.cache_of(target), target))

    def unchecked_path_info(self, target: Target) -> PathInfo:
        """Return the path info without checking its signature. Raises the errors of ``BinaryCache.path_info``."""
        settings = replace(self.settings, trusted_public_keys=(), cache_dir=None)
        with closing(self._open_cache(target, settings)) as cache:
            return self._of_instance(target, find_path_info(cache, target))

    def _of_instance(self, target: Target, info: PathInfo) -> PathInfo:
        """If the target is on an instance, replace the narinfo with the original narinfo that the instance has.

        The narinfo in an InstanceStore describes the uncompressed NAR that the instance sends.
        """
        return replace(info, narinfo=self._instance(target).narinfo(target.hash_part)) if target.home else info

    def nar(self, target: Target) -> Iterator[bytes]:
        """Return the NAR. See ``BinaryCache.nar``."""
        cache = self.cache_of(target)
        return cache.nar(find_path_info(cache, target))

    def references(self, target: Target) -> tuple[str, ...]:
        """Return the base names of the references. References and files from an instance are not verified."""
        if target.home:
            return self._instance(target).narinfo(target.hash_part).references
        return self.path_info(target).narinfo.references

    def open(self, target: Target) -> Opened:
        """Open the target's store path. Raises NarcoreError."""
        if target.home:
            instance = self._instance(target)
            with patience(instance.url):
                store_path, accessor = instance.open(target.hash_part, target.name)
            return Opened(store_path, accessor, instance=instance)
        return self.open_info(self.path_info(target))

    def _instance(self, target: Target) -> "Instance":
        from narserve.session.instance import Instance  # importing requests takes longer than all other imports

        if target.home not in self._instances:
            self._instances[target.home] = Instance(target.home, target.store_dir or DEFAULT_STORE_DIR)
        return self._instances[target.home]

    def open_info(self, info: PathInfo) -> Opened:
        return Opened(info.narinfo.store_path, self.cache.open(info), info)

    def locate(self, target: Target, *, follow: bool) -> LocatedNode:
        """Return the node that the target names; with ``follow``, if it is a link, the link's target. Raises NarcoreError."""
        follow = follow or target.follows
        for _ in range(MAX_HOPS):
            opened = self.open(target)
            opened, outcome = self._resolve(opened, target.path, follow=follow)
            if isinstance(outcome, Inside):  # a path without a link in it
                opened, outcome = self._resolve(opened, outcome.path, follow=follow)
            match outcome:
                case Found(node, path):
                    return LocatedNode(opened, node, path)
                case Elsewhere(path):
                    target = target.elsewhere(path)
        raise SymlinkLoop(f"too many links from one store path to another, the last one to {target.path}")

    def _resolve(self, opened: Opened, path: str, *, follow: bool) -> tuple[Opened, Outcome]:
        """Resolve a path in a store path. The listing is replaced if a better one is available (see ``BinaryCache.locate``)."""
        if opened.info is None:
            return opened, resolve(opened.accessor.listing, opened.store_path, path, follow_last=follow)
        accessor, outcome = self.cache.locate(opened.info, path, follow_last=follow)
        return replace(opened, accessor=accessor), outcome


def find_path_info(cache: BinaryCache, target: Target) -> PathInfo:
    """Look the target's store path up in ``cache``. Raises the errors of ``BinaryCache.path_info``."""
    with patience(" or ".join(substituter.url for substituter in cache.substituters)):
        if target.store_dir is None:
            return cache.path_info_anywhere(target.hash_part)
        return cache.path_info(target.hash_part, target.store_dir)


def session_options(command: Callable[Concatenate[Session, P], None]) -> Callable[..., None]:
    """Add the options ``--store`` and ``--cache-dir`` to a command, and pass it a Session for them as its first argument."""

    @click.option(
        "--store",
        "stores",
        multiple=True,
        metavar="URL",
        help="A binary cache: a URL (http(s)://, s3://, gs://, az://, file://) or a directory; repeatable.  [env: NAR_CACHE_URL]",
    )
    @click.option(
        "--cache-dir",
        metavar="DIR|off",
        help="Directory that caches unpacked archives.  [env: NAR_CACHE_DIR]",
    )
    @functools.wraps(command)
    def run(stores: tuple[str, ...], cache_dir: str | None, *args: P.args, **kwargs: P.kwargs) -> None:
        with Session(read_settings(stores, cache_dir)) as session:
            command(session, *args, **kwargs)

    return run


def read_settings(stores: tuple[str, ...], cache_dir: str | None) -> Settings:
    """Read the settings from the environment and the options, which take precedence.

    Prints a warning for each setting that has no effect. Raises SettingsError.
    """
    environ = dict(os.environ)
    if stores:
        environ["NAR_CACHE_URL"] = " ".join(map(_store_url, stores))
    if cache_dir:
        environ["NAR_CACHE_DIR"] = cache_dir
    settings = Settings.from_environ(environ)
    for warning in settings.warnings:
        print_message(f"warning: {warning}")
    return settings


def _store_url(text: str) -> str:
    """Return the URL of a store that is given as a URL or as a directory, absolute or relative."""
    if ":" in text:
        if text.split() != [text]:
            raise SettingsError(f"--store {text!r}: a URL can't contain spaces; write %20 instead")
        return text
    directory = Path(text).absolute()
    if not directory.is_dir():
        raise SettingsError(f"--store {text!r}: no such directory; a URL begins with https:// or another scheme")
    return directory.as_uri()
