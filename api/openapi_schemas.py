"""The JSON that this server sends, as schemas of an OpenAPI 3.1 document (JSON Schema 2020-12)."""

_SIZE = {"type": "integer", "minimum": 0}
_STRINGS = {"type": "array", "items": {"type": "string"}}


def _object(properties: dict[str, object], *optional: str) -> dict[str, object]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


SCHEMAS: dict[str, object] = {
    "Error": _object({"error": {"type": "string"}, "detail": {"type": "string"}}),
    "Listing": _object({"version": {"const": 1}, "root": {"$ref": "#/components/schemas/Node"}}),
    "Node": {"oneOf": [{"$ref": f"#/components/schemas/{kind}"} for kind in ("Regular", "Directory", "Symlink")]},
    "Regular": _object(
        {
            "type": {"const": "regular"},
            "size": _SIZE,
            "executable": {"type": "boolean"},
            "narOffset": _SIZE | {"description": "Where its bytes begin in the NAR."},
        },
        "executable",
    ),
    "Directory": _object(
        {
            "type": {"const": "directory"},
            "entries": {
                "type": "object",
                "additionalProperties": {"$ref": "#/components/schemas/Node"},
                "description": "Left out below the first level, unless all levels are asked for.",
            },
        },
        "entries",
    ),
    "Symlink": _object({"type": {"const": "symlink"}, "target": {"type": "string"}}),
    "NarInfo": _object(
        {
            "path": {"type": "string", "description": "The store path."},
            "narHash": {"type": "string"},
            "narSize": _SIZE,
            "references": _STRINGS,
            "deriver": {"type": "string"},
            "ca": {"type": "string"},
            "signatures": _STRINGS,
            "url": {"type": "string", "description": "Of the compressed NAR, relative to the store."},
            "downloadHash": {"type": "string", "description": "Of the compressed NAR."},
            "downloadSize": _SIZE,
            "compression": {"type": "string"},
            "store": {"type": "string", "description": "The URL of the binary cache that it is from."},
            "trusted": {"type": ["boolean", "null"], "description": "null: there are no keys to tell by."},
            "trustedFor": {"enum": ["store", "signature", "address"]},
        },
        *("deriver", "ca", "downloadHash", "downloadSize", "trustedFor"),
    ),
}
