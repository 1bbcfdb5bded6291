"""Finds out whether a process that waits for an answer is being killed.

The kernel reports every signal that a process gets while it waits (FUSE_INTERRUPT), but not which signal. If the
wait ended, stat(2) or open(2) would fail with EINTR. No program expects EINTR for a file, and many language runtimes often send
signals to themselves. So only a fatal signal ends the wait, as with NFS.
"""

import signal
from pathlib import Path

# Signals whose default action does not end the process (signal(7)).
_HARMLESS = (
    signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH,
    signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU,
)  # fmt: skip
_SETS = ("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt")


_FATAL = ~sum(1 << number - 1 for number in _HARMLESS)


def has_fatal_signal(thread_id: int) -> bool:
    """Return whether a pending signal will end the thread.

    Also returns True if the thread is gone, or in a PID namespace that is not visible: then the kernel reports its id as 0.
    """
    try:
        status = Path(f"/proc/{thread_id}/status").read_text(errors="replace")
    except OSError:
        return True
    fields = dict(line.split(":\t", 1) for line in status.split("\n") if ":\t" in line)
    thread, process, blocked, ignored, caught = (int(fields.get(name, "0"), 16) for name in _SETS)
    # If the signal ends the process without a core dump, the kernel has already added SIGKILL to the pending signals of each thread
    # (kernel/signal.c: complete_signal). If the signal causes a core dump, only the signal itself is pending.
    return bool((thread | process) & ~blocked & ~ignored & ~caught & _FATAL)
