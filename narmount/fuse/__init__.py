"""The kernel's FUSE protocol, the device and the request loop. This package is independent of NARs.

::

    protocol   encoding of requests and answers     syscalls      mount(2) and umount2(2)
    device     /dev/fuse, fusermount3               mountinfo     what is mounted
    server     reads requests, sends answers        fatalsignals  whether a waiting process is being killed
"""
