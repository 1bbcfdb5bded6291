"""The kernel's FUSE protocol, the device and the request loop. It knows nothing of NARs.

::

    protocol   what the kernel's bytes mean         syscalls      mount(2) and umount2(2)
    device     /dev/fuse, fusermount3               mountinfo     what is mounted
    server     requests off the device, answers     fatalsignals  whether a process that waits is about to end
"""
