"""The command line of ``nar-serve mount``. ``narserve.program`` finds it by the entry point in pyproject.toml."""

import errno
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
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

READY_SECONDS = 60  # mounting takes one or two; on a machine that starts a hundred other things, more
DEAD_SECONDS = 3.0  # the kernel says at once of a dead mount that it is; one that says nothing is alive, and stuck
GONE_SECONDS, LAZY_GONE_SECONDS = 5.0, 1.0
STOP_SECONDS = 10.0

HELP = """Mount the store paths of binary caches, read-only, at DIR.

\b
  nar-serve mount /nix/store
  nar-serve mount --store https://cache.example.org --store https://cache.nixos.org ~/store
  nar-serve mount --status
  nar-serve mount --unmount /nix/store

Every store path can be opened by its name, and is fetched when it is; ls shows those that were. What was fetched stays in the
disk cache, and the kernel reads it there by itself where it can (as root, Linux 6.9 or newer: "passthrough").

It goes on in the background: one process holds the mount, and another, which it replaces if need be, answers. Programs that read
just then only wait. SIGHUP to the holder replaces the worker (after an upgrade), SIGTERM unmounts.

The files are seen by whoever mounts them, and with --allow-other by everybody: containers whose programs don't run as root need
it. Without root it takes fusermount3 (the package fuse3), and for --allow-other the line user_allow_other in /etc/fuse.conf.

Where reading gives "Input/output error", --status says why (of the last one), and the file of --log (of each).

NAR_MOUNT_DEADLINE is how many seconds to wait for a store before reading fails. The server's settings of stores, keys, the cache
and its limits hold here, too.
"""


@click.command(short_help="Mount all store paths as a file system, or show what is mounted.", help=HELP)
@click.argument("directory", metavar="DIR", required=False, type=Path)  # click.Path looks at it, and a mount may hang
@click.option("--foreground", is_flag=True, help="Don't go into the background.")
@click.option(
    "--store", "stores", multiple=True, metavar="URL", help="A binary cache; repeatable.  [env: NAR_CACHE_URL]"
)
@click.option("--cache-dir", metavar="DIR", help="Where unpacked archives are kept.  [env: NAR_CACHE_DIR]")
@click.option(
    "--early", is_flag=True, help="Read files before all of the archive has been verified.  [env: NAR_MOUNT_EARLY]"
)
@click.option("--allow-other", is_flag=True, help="Let all users see the files.")
@click.option("--no-passthrough", is_flag=True, help="Never let the kernel read the cache by itself.")
@click.option("--run-dir", metavar="DIR", help="Where control sockets are.  [env: NAR_RUN_DIR]")
@click.option("--metrics", metavar="[HOST]:PORT", default="", help="Serve /metrics for Prometheus there.")
@click.option(
    "--log", "log_file", metavar="FILE", help="Append messages to it, when in the background; else they are lost."
)
@click.option("--status", is_flag=True, help="Show the mount at DIR, or all; exit code 3 if one of them is dead.")
@click.option("--json", "as_json", is_flag=True, help="With --status: as a JSON object, of all as an array.")
@click.option("--unmount", is_flag=True, help="Unmount DIR, also if its mount is dead.")
@click.option("--lazy", is_flag=True, help="With --unmount: out of sight at once, although it is in use.")
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
    target = _real(directory) if directory is not None else None
    if status and unmount:
        raise click.UsageError("--status and --unmount are two commands")
    if as_json and not status:
        raise click.UsageError("--json goes with --status")
    if lazy and not unmount:
        raise click.UsageError("--lazy goes with --unmount")
    if log_file and foreground:
        raise click.UsageError("--log is for the background; with --foreground messages go to standard error")
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
    _see_that_we_stay(options)
    make_run_dir(options.run_dir)
    with _alone(options.run_dir):
        _prepare(options, settings)
        if foreground:
            os.execv(sys.executable, _holder_command(options))  # noqa: S606  without what the command line has imported
        _start_holder(options, log_file)


# --- mounting


def _real(directory: Path) -> Path:
    """The path without links, as mountinfo has it. What is mounted at ``directory`` itself is not touched."""
    path = absolute(directory)
    target = Path(os.path.realpath(path.parent)) / path.name
    try:
        link = os.readlink(target)  # noqa: PTH115  Path.readlink says the same less plainly
    except OSError:  # no link
        return target
    raise MountError(f"{directory} is a link to {link}; name that directory itself")


def _cache_dir(settings: Settings, target: Path) -> Path:
    """Raises SettingsError."""
    if settings.cache_dir is None:
        step = "--cache-dir DIR names one"
        raise SettingsError(f"a mount serves out of the disk cache, and NAR_CACHE_DIR=off turns it off; {step}")
    found = Path(os.path.realpath(settings.cache_dir))
    if _hides(target, found):
        raise SettingsError(f"the cache at {found} would be hidden by the mount; --cache-dir DIR names another one")
    return found


def _hides(target: Path, path: Path) -> bool:
    return target == path or target in path.parents


def _see_that_we_stay(options: MountOptions) -> None:
    """Raises MountError. What a worker that starts looks for below the target it would have to ask itself for."""
    program = {sys.executable, os.path.realpath(sys.executable), sys.prefix, sys.base_prefix, __file__}
    for path in sorted(program):
        if _hides(options.target, Path(path)):
            step = "mount at another directory, or run one that is installed elsewhere"
            raise MountError(f"nar-serve needs {path}, which would be hidden by the mount; {step}")
    if _hides(options.target, options.run_dir):
        raise MountError(
            f"{options.run_dir} would be hidden by the mount; NAR_RUN_DIR or --run-dir names another directory"
        )


@contextmanager
def _alone(run_dir: Path) -> Generator[None]:
    """Of two that begin at once, each would see that nothing is mounted, and mount."""
    directory = os.open(run_dir / "mounts", os.O_RDONLY | os.O_DIRECTORY)  # no child inherits it
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def _prepare(options: MountOptions, settings: Settings) -> None:
    """See to all that can be seen to beforehand, and put the settings where the worker reads them."""
    if options.metrics:
        check_metrics(options.metrics)
    _make_room(options)
    if not options.target.exists():
        raise MountError(f"there is no directory {options.target}; make it first: mkdir -p {options.target}")
    if not options.target.is_dir():
        raise MountError(f"{options.target} is not a directory; name one to mount at")
    _make_cache_dir(options.cache_dir)
    if not settings.trusted_public_keys:
        print_message("NAR_TRUSTED_PUBLIC_KEYS is not set: what the stores say is believed without a signature")
    os.environ["NAR_CACHE_URL"] = " ".join(settings.cache_urls)
    os.environ["NAR_CACHE_DIR"] = str(options.cache_dir)
    # Else Python looks for modules in the working directory first: if that is the target, a worker that starts asks itself.
    os.environ["PYTHONSAFEPATH"] = "1"


def _make_cache_dir(cache_dir: Path) -> None:
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        step = "--cache-dir DIR or NAR_CACHE_DIR names another one"
        raise MountError(f"can't make the cache directory {cache_dir}: {error.strerror}; {step}") from error


def _make_room(options: MountOptions) -> None:
    """Remove dead mounts of ours at the target. Raises MountError if there is one that lives."""
    while ours := ours_at(options.target):
        if not _is_dead(options.run_dir, ours):
            step = f"nar-serve mount --unmount {options.target} ends that"
            raise MountError(f"{options.target} is mounted by nar-serve already; {step}")
        print_message(f"the mount at {options.target} is dead, and is removed")
        _detach(options.target, lazy=True)


def _is_dead(run_dir: Path, mounted: Mount) -> bool:
    """Whether nobody answers for it any more. One that only hangs is not dead."""
    path = control_path(run_dir, mounted.target)
    if path.exists():
        return is_abandoned(path)
    # It may have another run_dir, so its root is asked for: by another process, since nothing ends the waiting if it hangs.
    asking = subprocess.Popen([sys.executable, "-Sc", _ASK_ROOT, str(mounted.target)])  # noqa: S603
    try:
        return asking.wait(DEAD_SECONDS) in {errno.ENOTCONN, errno.ECONNABORTED}
    except subprocess.TimeoutExpired:
        asking.kill()
        asking.returncode = -signal.SIGKILL  # some day
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
    """Start it, and wait until it is mounted."""
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
            answer = _answer(ready)
        except BaseException:
            _stop(holder)
            raise
    if "error" in answer:
        _stop(holder)
        print_error(MountError(str(answer["error"])))
        code = answer.get("code")
        raise click.exceptions.Exit(code if isinstance(code, int) else TROUBLE)
    holder.returncode = 0  # it goes on without us, and that needs no warning
    print_message(f"{options.target} is mounted: {_summary(answer)}")


def _answer(ready: BinaryIO) -> dict[str, object]:
    """What the holder says. Raises MountError if that is nothing."""
    readable, _, _ = select.select([ready], [], [], READY_SECONDS)
    if not readable:
        raise MountError(f"it was not mounted within {READY_SECONDS} seconds; --foreground shows why")
    line = ready.readline()
    if not line:
        raise MountError("the process that mounts has ended; --foreground shows why")
    answer: dict[str, object] = json.loads(line)
    return answer


def _stop(holder: "subprocess.Popen[bytes]") -> None:
    """Have it unmount, if it is mounted."""
    holder.terminate()
    try:
        holder.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        holder.kill()
        holder.wait()


def _summary(answer: Mapping[str, object]) -> str:
    parts = [mode_text(answer.get("mode"), answer.get("reason"))]
    stores = answer.get("stores")
    if isinstance(stores, int):
        parts.append("1 store" if stores == 1 else f"{stores} stores")
    return ", ".join(parts)


# --- unmounting


def _unmount(run_dir: Path, target: Path, *, lazy: bool) -> None:
    if ours_at(target) is None:
        step = "nar-serve mount --status shows what is mounted"
        raise MountError(f"nothing of nar-serve is mounted at {target}; {step}")
    _detach(target, lazy=lazy)
    socket_file = control_path(run_dir, target)
    # The holder ends when the kernel has told it, and then it can be mounted again; of what is in use that may take for ever.
    deadline = time.monotonic() + (LAZY_GONE_SECONDS if lazy else GONE_SECONDS)
    while socket_file.exists() and not is_abandoned(socket_file) and time.monotonic() < deadline:
        time.sleep(0.05)
    if is_abandoned(socket_file):  # the holder was killed
        socket_file.unlink(missing_ok=True)
    elif socket_file.exists():
        print_message(
            f"{target} is unmounted; its processes end when nothing uses it any more, such as an overlay or a container"
        )
        for pid in earlier_holders(str(target)):
            step = f"if it does not end, its worker can't start: kill -KILL {pid}"
            print_message(f"an earlier version of nar-serve started process {pid}; {step}")


def _detach(target: Path, *, lazy: bool) -> None:
    try:
        device.unmount(target, lazy=lazy)
    except MountError as error:
        is_busy = isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EBUSY
        if is_busy and not lazy:
            raise MountError(f"{error}, and --lazy takes it out of sight although it is in use") from error
        raise
