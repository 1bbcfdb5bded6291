"""What schemathesis is told of this API: names of what there is, since it would not guess a hash of 32 characters.

It is loaded by schemathesis itself (SCHEMATHESIS_HOOKS), in its own process. ``NODES`` is JSON: pairs of the base name of a store
path, and a path in it.
"""

import json
import os
import zlib
from typing import Any

import schemathesis

NODES: list[tuple[str, str]] = json.loads(os.environ["NODES"])


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case[Any], kwargs: dict[str, Any]) -> None:
    """Most requests that are meant to be right are for something that exists; wrong ones stay wrong."""
    given = case.path_parameters
    is_right = case.meta is None or case.meta.generation.mode.is_positive
    choice = zlib.crc32(repr((given, case.query, case.headers)).encode("utf-8", "replace"))
    if is_right and "storePath" in given and choice % 8:
        given["storePath"], path = NODES[choice // 8 % len(NODES)]
        if "path" in given:
            given["path"] = path
