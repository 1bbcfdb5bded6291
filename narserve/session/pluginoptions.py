"""The options that the two volume plugins, ``nar-serve csi`` and ``nar-serve docker-volume``, have in common."""

import click

cache_option = click.option(
    "--cache", "caches", multiple=True, metavar="NAME=DIR", help="A mount that volumes can show; repeatable."
)
run_dir_option = click.option(
    "--run-dir", metavar="DIR", help="The directory of the control sockets of mounts.  [env: NAR_RUN_DIR]"
)
metrics_option = click.option(
    "--metrics", metavar="[HOST]:PORT", default="", help="Serve Prometheus metrics on this address, at /metrics."
)
json_option = click.option("--json", "as_json", is_flag=True, help="With --status: print a JSON object.")
