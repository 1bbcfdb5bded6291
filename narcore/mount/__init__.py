"""``nar-serve mount``: store paths as a read-only file system that fills itself from binary caches.

It speaks the kernel's FUSE protocol itself. One process (the holder) mounts and keeps the device open, and another (the worker)
answers; when the worker ends, whatever the reason, a new one goes on where it was.

::

    command    the command line                holder      mounts, keeps the device, starts workers
    options    what is chosen, as a value      worker      the process that answers
    control    status, news and prefetching    server      requests off the device, and answers to them
    metrics    for Prometheus                  filesystem  what is found where
    device     /dev/fuse, fusermount3          names       which number each store path has, on disk
    syscalls   mount(2) and umount(2)          protocol    what the bytes mean
    mountinfo  what is mounted
"""
