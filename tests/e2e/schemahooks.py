"""What schemathesis is told of this API: names of what there is, since it would not guess a hash of 32 characters.

It is loaded by schemathesis itself (SCHEMATHESIS_HOOKS), in its own process. ``STORE_PATHS`` holds full store paths.
"""

import os
import zlib
from typing import Any

import schemathesis

STORE_PATHS = [path.rpartition("/")[2] for path in os.environ["STORE_PATHS"].split()]
PATHS = (
    "bin",
    "bin/hello",
    "bin/hi",
    "share/doc",
    "lib",
    "data.json",
    "page.html",
    "docs",
    "sub",
    "sub/inner.txt",
    "none",
)


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case[Any], kwargs: dict[str, Any]) -> None:
    """Most requests that are meant to be right are for something that exists; wrong ones stay wrong."""
    given = case.path_parameters
    is_right = case.meta is None or case.meta.generation.mode.is_positive
    choice = zlib.crc32(repr((given, case.query, case.headers)).encode("utf-8", "replace"))
    if is_right and "storePath" in given and choice % 5:
        given["storePath"] = STORE_PATHS[choice % len(STORE_PATHS)]
        if "path" in given:
            given["path"] = PATHS[choice // 7 % len(PATHS)]
