"""``nar-serve info``: shows what a binary cache says about a store path."""

import json
from collections.abc import Iterator

import click

from narcore.errors import UntrustedSignature
from narcore.formats.signature import PublicKey, Signature
from narcore.lookup.pathinfo import PathInfo, Trust
from narcore.sizes import human_size
from narserve.session.session import Session, session_options
from narserve.session.target import Target, target_argument
from narserve.terminal.exits import for_each
from narserve.terminal.output import StandardOutput


@click.command(short_help="Show the metadata of a store path.")
@click.argument("paths", metavar="PATH...", type=target_argument, nargs=-1, required=True)
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object per PATH, with the names of nix path-info --json."
)
@session_options
def info(session: Session, paths: tuple[Target, ...], as_json: bool) -> None:
    """Show the metadata that a binary cache has for a store path: sizes, hashes, references, signatures.

    \b
      nar-serve info /nix/store/<hash>-hello-2.12
      nar-serve info --json <hash> | jq .narSize
      nar-serve info https://nar.example.org/nix/store/<hash>

    The contents are not fetched or checked; for that, use nar-serve verify.
    """
    out = StandardOutput()

    def show(target: Target) -> None:
        found, trusted = _find(session, target)
        if as_json:
            out.write(json.dumps(found.to_json() | {"trusted": trusted}) + "\n")
            return
        for label, text in _rows(session, found, trusted):
            out.write(f"{label:12}  {text}\n")

    for_each(paths, show)
    out.flush()


def _find(session: Session, target: Target) -> tuple[PathInfo, bool | None]:
    """Return the path info, even if it has no trusted signature, and whether it is trusted (None without configured keys)."""
    try:
        found = session.path_info(target)
    except UntrustedSignature:
        return session.unchecked_path_info(target), False
    return found, None if found.trust is Trust.UNCHECKED else True


def _rows(session: Session, found: PathInfo, trusted: bool | None) -> Iterator[tuple[str, str]]:
    narinfo = found.narinfo
    yield "store path", str(narinfo.store_path)
    yield "cache", found.store.url
    yield "trusted", "NO: no trusted key has signed it" if trusted is False else found.trust.explanation.answer
    yield from _many("signatures", [_signature(session, found, signature) for signature in narinfo.signatures])
    if narinfo.ca:
        yield "CA", narinfo.ca
    yield "NAR size", _size(narinfo.nar_size)
    yield "NAR hash", narinfo.nar_hash.to_nix32()
    yield "file", narinfo.url
    yield "compression", narinfo.compression
    if narinfo.file_size is not None:
        yield "file size", _size(narinfo.file_size)
    if narinfo.deriver:
        yield "deriver", narinfo.deriver
    yield from _many("references", list(narinfo.references))


def _many(label: str, texts: list[str]) -> Iterator[tuple[str, str]]:
    for index, text in enumerate(texts or ["none"]):
        yield "" if index else label, text


def _size(size: int) -> str:
    return f"{human_size(size)} ({size} bytes)" if size >= 1024 else f"{size} bytes"


def _signature(session: Session, found: PathInfo, signature: Signature) -> str:
    keys = [key for key in session.settings.trusted_public_keys if key.name == signature.name]
    if not keys:
        return f"{signature.name}: not checked, since this key is not trusted"
    return f"{signature.name}: {'good' if _is_good(keys, found, signature) else 'BAD'}"


def _is_good(keys: list[PublicKey], found: PathInfo, signature: Signature) -> bool:
    fingerprint = found.narinfo.fingerprint()
    return any(key.verify(fingerprint, signature) for key in keys)
