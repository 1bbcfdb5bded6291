"""``nar-serve mount``: mounts and unmounts."""

import errno
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import click

from narcore.errors import MountError, SettingsError
from narcore.settings import Settings
from narmount.daemon.control import control_path, is_abandoned, make_run_dir
from narmount.daemon.options import MountOptions
from narmount.fuse import device
from narmount.fuse.mountinfo import Mount, absolute, ours_at
from narmount.metrics import check_metrics
from narserve.commands.mountstatus import earlier_holders, mode_text, show_status
from narserve.session.session import read_settings
from narserve.terminal.exits import TROUBLE, print_error, print_message

READY_SECONDS = 60  # mounting takes 1 to 2 s, and longer on a busy machine that is booting
DEAD_SECONDS = 3.0  # a dead mount fails immediately; a mount that does not answer within this time is alive but hangs
GONE_SECONDS, LAZY_GONE_SECONDS = 5.0, 1.0
STOP_SECONDS = 10.0

HELP = """Mount the store paths of binary caches, read-only, at DIR.

\b
  nar-serve mount /nix/store
  nar-serve mount --store https://cache.example.org --store https://cache.nixos.org ~/store
  nar-serve mount --status
  nar-serve mount --unmount /nix/store

A program can open every store path by its name. A store path is fetched when it is first opened, and stays in the disk cache. ls
shows the store paths that have been opened. On Linux 6.9 or newer, if the mount belongs to root, the kernel reads files directly
from the disk cache ("passthrough").

The mount runs in the background. One process, the holder, keeps the mount open. Another process, the worker, answers the requests
of programs. If the worker ends, the holder starts another worker, and programs wait meanwhile. SIGHUP to the holder replaces the
worker, for example after an upgrade. SIGTERM to the holder unmounts DIR.

Only the user who mounts sees the files. With --allow-other, all users see them; containers whose programs don't run as root need
--allow-other. Without root, mounting needs fusermount3 (the package fuse3), and --allow-other needs the line user_allow_other in
/etc/fuse.conf.

If a read fails with "Input/output error", --status shows the reason of the last failure. The file of --log has the reasons of all
failures.

If a store makes no progress for NAR_MOUNT_DEADLINE seconds, reads fail. The settings of the server for stores, keys, the disk cache
and limits also apply to mounts.
"""


@click.command(short_help="Mount all store paths as a file system, or show what is mounted.", help=HELP)
# Not click.Path, which accesses the path: a mount may hang.
@click.argument("directory", metavar="DIR", required=False, type=Path)
@click.option("--foreground", is_flag=True, help="Stay in the foreground.")
@click.option(
    "--store", "stores", multiple=True, metavar="URL", help="A binary cache; repeatable.  [env: NAR_CACHE_URL]"
)
@click.option("--cache-dir", metavar="DIR", help="The directory of the disk cache.  [env: NAR_CACHE_DIR]")
@click.option("--early", is_flag=True, help="Show files before their NAR is verified.  [env: NAR_MOUNT_EARLY]")
@click.option("--allow-other", is_flag=True, help="Let all users see the files.")
@click.option("--no-passthrough", is_flag=True, help="Never let the kernel read the cache directly.")
@click.option("--run-dir", metavar="DIR", help="The directory of the control sockets.  [env: NAR_RUN_DIR]")
@click.option(
    "--metrics", metavar="[HOST]:PORT", default="", help="Serve Prometheus metrics on this address, at /metrics."
)
@click.option(
    "--log",
    "log_file",
    metavar="FILE",
    help="Append messages to FILE; without it, a mount in the background logs nothing.",
)
@click.option(
    "--status",
    is_flag=True,
    help="Show the mount at DIR, or all mounts; the exit code is 3 if a mount does not answer.",
)
@click.option("--json", "as_json", is_flag=True, help="With --status: print a JSON object, or an array for all mounts.")
@click.option("--unmount", is_flag=True, help="Unmount DIR, even if its mount is dead.")
@click.option("--lazy", is_flag=True, help="With --unmount: detach the mount immediately, even if it is in use.")
def mount(
    directory: Path | None,
    stores: tuple[str, ...],
    cache_dir: str | None,
    run_dir: str | None,
    status: bool,
    as_json: bool,
    unmount: bool,
    lazy: bool,
    foreground: bool,
    log_file: str | None,
    early: bool,
    allow_other: bool,
    no_passthrough: bool,
    metrics: str,
) -> None:
    if run_dir:
        os.environ["NAR_RUN_DIR"] = run_dir
    settings = read_settings(stores, cache_dir)
    target = _real_path(directory) if directory is not None else None
    if status and unmount:
        raise click.UsageError("--status and --unmount can't be used together")
    if as_json and not status:
        raise click.UsageError("--json needs --status")
    if lazy and not unmount:
        raise click.UsageError("--lazy needs --unmount")
    if log_file and foreground:
        raise click.UsageError("--log can't be used with --foreground, which logs to standard error")
    if status:
        show_status(settings.run_dir, target, as_json=as_json)
        return
    if target is None:
        raise click.UsageError("DIR is missing")
    if unmount:
        _unmount(settings.run_dir, target, lazy=lazy)
        return
    if early:
        os.environ["NAR_MOUNT_EARLY"] = "on"
    options = MountOptions(
        target=target,
        allow_other=allow_other,
        passthrough=not no_passthrough,
        run_dir=settings.run_dir,
        cache_dir=_cache_dir(settings, target),
        metrics=metrics,
    )
    _check_not_hidden(options)
    make_run_dir(options.run_dir)
    with _lock_run_dir(options.run_dir):
        _prepare(options, settings)
        if foreground:
            os.execv(sys.executable, _holder_command(options))  # noqa: S606  a new program, without the modules of the command line
        _start_holder(options, log_file)


# --- mounting


def _real_path(directory: Path) -> Path:
    """Return the path without links, as in /proc/self/mountinfo. Does not access the file system mounted at ``directory``."""
    path = absolute(directory)
    target = Path(os.path.realpath(path.parent)) / path.name
    try:
        link = os.readlink(target)  # noqa: PTH115  the text is for a message
    except OSError:  # not a link
        return target
    raise MountError(f"{directory} is a link to {link}; use the path of the directory itself")


def _cache_dir(settings: Settings, target: Path) -> Path:
    """Return the cache directory, without links. Raises SettingsError if there is none, or if the mount would hide it."""
    if settings.cache_dir is None:
        raise SettingsError(
            "a mount needs the disk cache, which NAR_CACHE_DIR=off turns off; choose a directory with --cache-dir DIR"
        )
    found = Path(os.path.realpath(settings.cache_dir))
    if found.is_relative_to(target):
        raise SettingsError(f"the mount would hide the cache at {found}; choose another directory with --cache-dir DIR")
    return found


def _check_not_hidden(options: MountOptions) -> None:
    """Check that the mount does not hide the program. Raises MountError.

    Otherwise a new worker would need files that only the worker itself can provide, and would wait forever.
    """
    program = {sys.executable, os.path.realpath(sys.executable), sys.prefix, sys.base_prefix, __file__}
    for path in sorted(program):
        if Path(path).is_relative_to(options.target):
            step = "mount at another directory, or use a nar-serve that is installed elsewhere"
            raise MountError(f"the mount would hide {path}, which nar-serve needs; {step}")
    if options.run_dir.is_relative_to(options.target):
        raise MountError(
            f"the mount would hide {options.run_dir}; choose another directory with --run-dir or NAR_RUN_DIR"
        )


@contextmanager
def _lock_run_dir(run_dir: Path) -> Generator[None]:
    """Lock the directory, so that two commands can't mount at the same time."""
    directory = os.open(run_dir / "mounts", os.O_RDONLY | os.O_DIRECTORY)  # child processes do not inherit it
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def _prepare(options: MountOptions, settings: Settings) -> None:
    """Check everything that can be checked before mounting, and put the settings into the environment for the worker."""
    if options.metrics:
        check_metrics(options.metrics)
    _remove_dead_mounts(options)
    if not options.target.exists():
        raise MountError(f"the directory {options.target} does not exist; make it first: mkdir -p {options.target}")
    if not options.target.is_dir():
        raise MountError(f"{options.target} is not a directory; choose a directory to mount at")
    _make_cache_dir(options.cache_dir)
    if not settings.trusted_public_keys:
        print_message("NAR_TRUSTED_PUBLIC_KEYS is not set: store paths are accepted without a trusted signature")
    os.environ["NAR_CACHE_URL"] = " ".join(settings.cache_urls)
    os.environ["NAR_CACHE_DIR"] = str(options.cache_dir)
    # Otherwise Python looks for modules in the working directory. If the working directory is the target of the mount, a new worker
    # would wait for files that only the worker itself can provide.
    os.environ["PYTHONSAFEPATH"] = "1"


def _make_cache_dir(cache_dir: Path) -> None:
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        step = "choose another directory with --cache-dir DIR or NAR_CACHE_DIR"
        raise MountError(f"can't make the cache directory {cache_dir}: {error.strerror}; {step}") from error


def _remove_dead_mounts(options: MountOptions) -> None:
    """Unmount dead mounts of nar-serve at the target. Raises MountError if a mount there is alive."""
    while ours := ours_at(options.target):
        if not _is_dead(options.run_dir, ours):
            step = f"unmount it first: nar-serve mount --unmount {options.target}"
            raise MountError(f"nar-serve is already mounted at {options.target}; {step}")
        print_message(f"the mount at {options.target} is dead; removing it")
        _detach(options.target, lazy=True)


def _is_dead(run_dir: Path, mounted: Mount) -> bool:
    """Return whether the processes of the mount have ended. A mount that hangs is not dead."""
    path = control_path(run_dir, mounted.target)
    if path.exists():
        return is_abandoned(path)
    # The mount may have another run_dir, so its control socket can't be found. A child process accesses the mount instead: if the
    # mount hangs, only the child hangs, and this process goes on without it.
    process = subprocess.Popen([sys.executable, "-Sc", _ASK_ROOT, str(mounted.target)])  # noqa: S603
    try:
        return process.wait(DEAD_SECONDS) in {errno.ENOTCONN, errno.ECONNABORTED}
    except subprocess.TimeoutExpired:
        process.kill()
        process.returncode = -signal.SIGKILL  # it ends later; this avoids a ResourceWarning
        return False


_ASK_ROOT = """
import os, sys
try:
    os.statvfs(sys.argv[1])
except OSError as error:
    sys.exit(error.errno)
"""


def _holder_command(options: MountOptions) -> list[str]:
    return [sys.executable, "-m", "narmount.daemon.holder", options.to_json()]


def _start_holder(options: MountOptions, log_file: str | None) -> None:
    """Start the holder in the background, and wait until it has mounted."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as ready, Path(log_file or os.devnull).open("ab") as log:
        holder = subprocess.Popen(  # noqa: S603
            _holder_command(replace(options, ready_fd=writing)),
            pass_fds=(writing,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
        )
        os.close(writing)
        try:
            answer = _read_report(ready)
        except BaseException:
            _stop(holder)
            raise
    if "error" in answer:
        _stop(holder)
        print_error(MountError(str(answer["error"])))
        code = answer.get("code")
        raise click.exceptions.Exit(code if isinstance(code, int) else TROUBLE)
    holder.returncode = 0  # it keeps running; this avoids a ResourceWarning
    mode, stores = mode_text(answer.get("mode"), answer.get("reason")), answer.get("stores")
    print_message(f"{options.target} is mounted: {mode}, {stores} {'store' if stores == 1 else 'stores'}")


def _read_report(ready: BinaryIO) -> dict[str, object]:
    """Read the report of the holder. Raises MountError if there is none."""
    readable, _, _ = select.select([ready], [], [], READY_SECONDS)
    if not readable:
        raise MountError(f"mounting has not finished within {READY_SECONDS} seconds; add --foreground to see why")
    line = ready.readline()
    if not line:
        raise MountError("the holder has ended without a report; add --foreground to see why")
    answer: dict[str, object] = json.loads(line)
    return answer


def _stop(holder: "subprocess.Popen[bytes]") -> None:
    """End the holder, which unmounts."""
    holder.terminate()
    try:
        holder.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        holder.kill()
        holder.wait()


# --- unmounting


def _unmount(run_dir: Path, target: Path, *, lazy: bool) -> None:
    if ours_at(target) is None:
        raise MountError(f"nar-serve is not mounted at {target}; see all mounts with nar-serve mount --status")
    _detach(target, lazy=lazy)
    socket_file = control_path(run_dir, target)
    # The target can be mounted again after the holder has ended. While the mount is in use, the holder does not end.
    deadline = time.monotonic() + (LAZY_GONE_SECONDS if lazy else GONE_SECONDS)
    while socket_file.exists() and not is_abandoned(socket_file) and time.monotonic() < deadline:
        time.sleep(0.05)
    if is_abandoned(socket_file):  # the holder was killed
        socket_file.unlink(missing_ok=True)
    elif socket_file.exists():
        print_message(
            f"{target} is unmounted; its processes end when no program, container or overlay uses the mount any more"
        )
        for pid in earlier_holders(str(target)):
            step = f"if the process does not end, kill it: kill -KILL {pid}"
            print_message(f"an earlier version of nar-serve started process {pid}; {step}")


def _detach(target: Path, *, lazy: bool) -> None:
    try:
        device.unmount(target, lazy=lazy)
    except MountError as error:
        is_busy = isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EBUSY
        if is_busy and not lazy:
            raise MountError(f"{error}; or use --lazy, which detaches the mount although it is in use") from error
        raise
