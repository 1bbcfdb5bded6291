"""narinfos as JSON, with the field names of ``nix path-info --json`` (Nix: src/libstore/path-info.cc, toJSON).

Hashes are in base 32 and paths are full paths, as Nix 2.3 to 2.18 write them. Unknown values are omitted; ``compression`` is an
additional field.
"""

from typing import Any

from narcore.errors import FormatError, NarInfoError
from narcore.formats.narinfo import NarInfo
from narcore.formats.nixhash import NixHash
from narcore.formats.signature import Signature
from narcore.formats.storepath import StorePath


def to_json(narinfo: NarInfo) -> dict[str, object]:
    """Return the narinfo as an object for json.dumps."""
    store_dir = narinfo.store_path.store_dir
    fields: dict[str, object | None] = {
        "path": str(narinfo.store_path),
        "narHash": narinfo.nar_hash.to_nix32(),
        "narSize": narinfo.nar_size,
        "references": [f"{store_dir}/{name}" for name in narinfo.references],
        "deriver": f"{store_dir}/{narinfo.deriver}" if narinfo.deriver else None,
        "ca": narinfo.ca,
        "signatures": [str(signature) for signature in narinfo.signatures],
        "url": narinfo.url,
        "downloadHash": narinfo.file_hash.to_nix32() if narinfo.file_hash else None,
        "downloadSize": narinfo.file_size,
        "compression": narinfo.compression,
    }
    return {name: value for name, value in fields.items() if value is not None}


def from_json(fields: object) -> NarInfo:
    """Read the object that `to_json` returned, after json.loads. Raises NarInfoError for anything else."""
    if not isinstance(fields, dict):
        raise NarInfoError("not an object")
    try:
        return _read(fields)
    except (KeyError, TypeError, AttributeError) as error:
        raise NarInfoError("a field is missing, or of the wrong type") from error
    except FormatError as error:
        raise NarInfoError(str(error)) from error


def _read(fields: dict[str, Any]) -> NarInfo:
    store_dir = fields["path"].rpartition("/")[0]
    return NarInfo(
        store_path=StorePath.parse(fields["path"], store_dir),
        url=fields["url"],
        compression=fields["compression"],
        nar_hash=NixHash.parse(fields["narHash"]),
        nar_size=_integer(fields["narSize"]),
        file_hash=NixHash.parse(fields["downloadHash"]) if "downloadHash" in fields else None,
        file_size=_integer(fields["downloadSize"]) if "downloadSize" in fields else None,
        references=tuple(path.removeprefix(f"{store_dir}/") for path in fields["references"]),
        deriver=fields["deriver"].removeprefix(f"{store_dir}/") if "deriver" in fields else None,
        signatures=tuple(map(Signature.parse, fields["signatures"])),
        ca=fields.get("ca"),
    )


def _integer(value: object) -> int:
    if type(value) is not int:  # excludes JSON's fractions and booleans
        raise TypeError(f"not an integer: {value!r}")
    return value
