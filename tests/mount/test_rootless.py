"""Mounting as the user nobody: with fusermount3, and in a user namespace, which can also mount an overlay.

The interpreter and this source tree may be in directories that other users can't read. So the tests run in a mount namespace
in which these directories are bind-mounted where every user can reach them.
"""

import os
import shlex
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from narmount.fuse.device import DEVICE
from tests import ROOT, needs
from tests.mount import mounting
from tests.mount.mounting import ask
from tests.mount.samples import KEY, base, files_of, sample

NOBODY = 65534
START_SECONDS = 30

Serve = Callable[..., str]


@pytest.fixture
def open_device() -> Iterator[None]:
    """Let every user open /dev/fuse, as on almost all systems."""
    needs.fuse()
    needs.programs(("fusermount3", "unshare", "nsenter", "setpriv"))
    mode = stat.S_IMODE(Path(DEVICE).stat().st_mode)
    Path(DEVICE).chmod(0o666)
    try:
        yield
    finally:
        Path(DEVICE).chmod(mode)


@dataclass(frozen=True, slots=True)
class Rootless:
    """A mount of the user nobody. ``process`` is the first process of its mount namespace."""

    process: subprocess.Popen[bytes]
    target: Path
    log: Path
    user_namespace: bool

    def run_script(self, script: str) -> mounting.Outcome:
        """Run a script as the user nobody in the mount."""
        become = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        enter = ["nsenter", "--target", str(self.process.pid), "--mount"]
        if self.user_namespace:
            enter = [*become, *enter, "--user", "--preserve-credentials"]
        else:
            enter += become
        return ask(*enter, "sh", "-c", f"cd {self.target} || exit 99; {script}")


def reachable() -> str:
    """Return a script that makes all directories above what Python needs searchable, in its mount namespace only."""
    needed = sorted({Path(sys.prefix), Path(sys.base_prefix), ROOT})
    hidden = sorted({parent for path in needed for parent in path.parents if not parent.stat().st_mode & 0o001})
    script = ["keep=$(mktemp -d)", 'mount -t tmpfs -o mode=755 keep "$keep"']
    for number, path in enumerate(needed):
        script += [f'mkdir "$keep/{number}"', f'mount --bind {shlex.quote(str(path))} "$keep/{number}"']
    for directory in hidden:
        if not any(parent in hidden for parent in directory.parents):
            script.append(f"mount -t tmpfs -o mode=755 hidden {shlex.quote(str(directory))}")
    for number, path in enumerate(needed):
        if any(parent in hidden for parent in path.parents):
            quoted = shlex.quote(str(path))
            script += [f"mkdir -p {quoted}", f'mount --bind "$keep/{number}" {quoted}']
    return "\n".join(script)


@contextmanager
def rootless(url: str, *, user_namespace: bool, options: str = "") -> Iterator[Rootless]:
    with tempfile.TemporaryDirectory(prefix="rootless-") as made:
        directory = Path(made)
        target = directory / "mnt"
        target.mkdir()
        for path in (directory, target):
            os.chown(path, NOBODY, NOBODY)
        settings = {
            "NAR_CACHE_URL": url,
            "NAR_CACHE_DIR": f"{directory}/cache",
            "NAR_RUN_DIR": f"{directory}/run",
            "NAR_TRUSTED_PUBLIC_KEYS": str(KEY.public_key),
            "HOME": str(directory),
        }
        command = shlex.join([sys.executable, "-m", "narserve", "mount", str(target), "--foreground"])
        as_nobody = f"setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups "
        if user_namespace:
            as_nobody += "unshare --user --map-root-user --mount "
        script = f"{reachable()}\ncd {shlex.quote(str(ROOT))}\nexec {as_nobody}{command} {options}"
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                ["unshare", "--mount", "--propagation", "private", "sh", "-euc", script],
                env=mounting.environment(settings),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        mount = Rootless(process, target, directory / "log", user_namespace)
        try:
            wait_for(mount)
            yield mount
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        assert "Traceback" not in (directory / "log").read_text()


def wait_for(mount: Rootless) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and mount.process.poll() is None:
        text = Path(f"/proc/{mount.process.pid}/mountinfo").read_text()
        if f" {mount.target} " in text and "fuse.nar-serve" in text:
            return
        time.sleep(0.05)
    raise RuntimeError(f"it did not mount; its log:\n{mount.log.read_text()[-8000:]}")


@pytest.mark.usefixtures("open_device")
@pytest.mark.parametrize("user_namespace", [False, True], ids=["fusermount3", "namespace"])
def test_an_unprivileged_user_mounts_and_reads(serve: Serve, user_namespace: bool) -> None:
    with rootless(serve({"one": sample(1)}), user_namespace=user_namespace) as mount:
        for name, data in files_of(sample(1)):
            outcome = mount.run_script(f"cat {base('one')}/{name}")
            assert outcome.output == data, outcome
        assert mount.run_script(f"{base('one')}/bin/link").output == b"1\n"
        assert mount.run_script(f"touch {base('one')}/new").status != 0
        assert mount.run_script(f"ls -d {base('two')}").status != 0
        text = Path(f"/proc/{mount.process.pid}/mountinfo").read_text()
        (line,) = (line for line in text.splitlines() if f" {mount.target} " in line)
        assert {"ro", "nosuid", "nodev"} <= set(line.split()[5].split(","))


@pytest.mark.usefixtures("open_device")
def test_an_overlay_can_be_mounted_in_a_user_namespace(serve: Serve) -> None:
    with rootless(serve({"one": sample(1)}), user_namespace=True) as mount:
        script = (
            "set -e; cd ..; mkdir upper work merged; "
            "mount -t overlay pod -o userxattr,lowerdir=mnt,upperdir=upper,workdir=work merged; "
            f"cd merged; cat {base('one')}/a-first; echo mine > new; cat new; ls {base('one')}; umount -l ../merged"
        )
        outcome = mount.run_script(script)
        assert outcome.output.decode().split() == ["first", "of", "1", "mine", *sorted(sample(1))], outcome


@pytest.mark.usefixtures("open_device")
@pytest.mark.parametrize("user_namespace", [False, True], ids=["fusermount3", "namespace"])
def test_an_unprivileged_worker_is_restarted_after_it_is_killed(serve: Serve, user_namespace: bool) -> None:
    with rootless(serve({"one": sample(1)}), user_namespace=user_namespace) as mount:
        assert mount.run_script(f"cat {base('one')}/a-first").output == b"first of 1\n"
        children = Path(f"/proc/{mount.process.pid}/task/{mount.process.pid}/children").read_text().split()
        for child in children:
            os.kill(int(child), signal.SIGKILL)
        assert mount.run_script(f"cat {base('one')}/z-last {base('one')}/large | wc -c").output.strip() == b"300010"


@pytest.mark.usefixtures("open_device")
def test_other_users_have_no_access_without_allow_other(serve: Serve) -> None:
    """Root has no access either."""
    with rootless(serve({"one": sample(1)}), user_namespace=False) as mount:
        assert mount.run_script(f"cat {base('one')}/a-first").status == 0
        outcome = ask("nsenter", "--target", str(mount.process.pid), "--mount", "ls", mount.target)
        assert "Permission denied" in outcome.errors
