"""Whether a process that waits for us is about to end.

The kernel tells of every signal that comes to a process while it waits (FUSE_INTERRUPT), and not which. To let it go then means
that its stat(2) or open(2) fails with EINTR, which no program expects of a file: many runtimes send themselves signals often.
So, as with NFS, only who is killed is let go.
"""

import signal
from pathlib import Path

# What a process that does nothing about them is not ended by.
_HARMLESS = (
    signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH,
    signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU,
)  # fmt: skip
_SETS = ("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt")


_FATAL = ~sum(1 << number - 1 for number in _HARMLESS)


def has_fatal_signal(thread_id: int) -> bool:
    """Whether a signal is pending that ends the thread; also if it is gone, or can't be seen: 0, from another pid namespace."""
    try:
        status = Path(f"/proc/{thread_id}/status").read_text(errors="replace")
    except OSError:
        return True
    fields = dict(line.split(":\t", 1) for line in status.split("\n") if ":\t" in line)
    thread, process, blocked, ignored, caught = (int(fields.get(name, "0"), 16) for name in _SETS)
    # One that ends all threads has become a SIGKILL of each by now (kernel/signal.c: complete_signal), unless it dumps core.
    return bool((thread | process) & ~blocked & ~ignored & ~caught & _FATAL)
