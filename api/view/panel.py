"""The panel about a store path: values from its narinfo, and commands to copy."""

import shlex
from typing import NamedTuple

from api.http.text import quote_path
from api.view.rows import exact_size
from api.view.storelinks import Link
from narcore.lookup.pathinfo import PathInfo
from narcore.sizes import human_size


class Size(NamedTuple):
    short: str
    exact: str


class Panel(NamedTuple):
    """The panel of one store path. ``commands`` are pairs of a description and a command line."""

    nar_size: Size
    file_size: Size | None
    compression: str
    nar_hash: str
    references: list[Link]
    deriver: Link | None
    signers: list[str]
    is_verified: bool
    trust: str
    store: str
    commands: list[tuple[str, str]]


def panel_of(info: PathInfo, prefix: str, url: str) -> Panel:
    """Make the panel of a store path.

    ``prefix`` is the percent-encoded prefix of links to other store paths. ``url`` is the absolute URL of this store path.
    """
    narinfo = info.narinfo
    store_dir = narinfo.store_path.store_dir

    def link(base_name: str) -> Link:
        return Link(base_name, f"{prefix}{quote_path(f'{store_dir}/{base_name}')}")

    return Panel(
        nar_size=_size(narinfo.nar_size),
        file_size=_size(narinfo.file_size) if narinfo.file_size is not None else None,
        compression=narinfo.compression,
        nar_hash=narinfo.nar_hash.to_sri(),
        references=[link(reference) for reference in narinfo.references],
        deriver=link(narinfo.deriver) if narinfo.deriver else None,
        signers=list(dict.fromkeys(signature.name for signature in narinfo.signatures)),
        is_verified=info.trust.is_verified,
        trust=info.trust.explanation.sentence,
        store=info.store.url,
        commands=_commands(str(narinfo.store_path), info.store.url, url),
    )


def _size(size: int) -> Size:
    return Size(human_size(size), exact_size(size))


def _commands(store_path: str, store_url: str, url: str) -> list[tuple[str, str]]:
    path, store = shlex.quote(store_path), shlex.quote(store_url)
    return [
        ("Copy to your Nix store", f"nix copy --from {store} {path}"),
        ("Copy with nix-store", f"nix-store -r {path} --option extra-substituters {store}"),
        ("Download and unpack without Nix", f"curl -L {shlex.quote(url + '?format=tar.zst')} | tar --zstd -x"),
    ]
