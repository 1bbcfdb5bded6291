"""The limit of open files (RLIMIT_NOFILE), and how many connections fit into it."""

import os
import resource

# A worker needs about this many open files without any connection: the program, its logs, its metrics.
RESERVED = 128

# A thread has at most these files open: the connection to a store, the NAR, the cache file that it writes, and its lock file.
PER_THREAD = 4

# A connection needs its socket, and possibly the file that is being sent over it.
PER_CONNECTION = 2

# The maximum number of connections of a worker. More connections could need more memory than a small machine has. A connection
# needs a few kilobytes in this process, and up to some megabytes of buffers in the kernel.
MOST = 16384


def raise_limit() -> int:
    """Raise the limit of open files as far as the system allows, also for later child processes. Returns the limit.

    The limit that most systems start a process with, 1024, exists for programs that use select(2).
    """
    try:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (
        OSError,
        ValueError,
    ):  # a system call filter; on macOS, the hard limit may be higher than what the kernel accepts
        return os.sysconf("SC_OPEN_MAX")
    return hard


def max_connections(open_files: int, threads: int) -> int:
    """Return how many connections a worker can have if its limit of open files is ``open_files``."""
    room = open_files - RESERVED - PER_THREAD * threads
    return MOST if open_files == resource.RLIM_INFINITY else max(threads, min(MOST, room // PER_CONNECTION))
