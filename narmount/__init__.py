"""``nar-serve mount``: store paths as a read-only file system that fills itself from binary caches.

It speaks the kernel's FUSE protocol itself. One process (the holder) mounts and keeps the device open, and another (the worker)
answers; when the worker ends, whatever the reason, a new one goes on where it was.

::

    command    the command line                holder      mounts, keeps the device, starts workers
    status     what it shows of mounts         worker      the process that answers
    options    what is chosen, as a value      server      requests off the device, and answers to them
    control    status, news and prefetching    dying       whether a process that waits is about to end
    prefetch   closures, fetched ahead         filesystem  what is found where
    metrics    for Prometheus                  names       which number each store path has
    scarce     a log that nobody can fill      opennars    the NARs that are read from
    device     /dev/fuse, fusermount3          backings    the files that the kernel reads by itself
    syscalls   mount(2) and umount(2)          early       reading before all is verified
    mountinfo  what is mounted                 denied      names that were not there
    protocol   what the kernel's bytes mean
"""
