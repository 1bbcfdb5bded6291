"""A hook that gives schemathesis names of existing store paths, because it would never guess a hash of 32 characters.

schemathesis loads this module in its own process (SCHEMATHESIS_HOOKS). The environment variable NODES is JSON: pairs of the base
name of a store path and a path in it.
"""

import json
import os
import zlib
from typing import Any

import schemathesis

NODES: list[tuple[str, str]] = json.loads(os.environ["NODES"])


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case[Any], kwargs: dict[str, Any]) -> None:
    """Replace the path in 7 of 8 valid requests by one that exists; do not change invalid requests."""
    parameters = case.path_parameters
    is_valid = case.meta is None or case.meta.generation.mode.is_positive
    choice = zlib.crc32(repr((parameters, case.query, case.headers)).encode("utf-8", "replace"))
    if is_valid and "storePath" in parameters and choice % 8:
        parameters["storePath"], path = NODES[choice // 8 % len(NODES)]
        if "path" in parameters:
            parameters["path"] = path
