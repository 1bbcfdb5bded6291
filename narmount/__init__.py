"""``nar-serve mount``: store paths as a read-only file system. Files are fetched from binary caches on demand.

This package speaks FUSE with the kernel without a FUSE library. One process, the holder, mounts the file system and keeps /dev/fuse
open. Another process, the worker, answers requests. When the worker ends for any reason, the holder starts a new worker.

::

    fuse     the kernel's FUSE protocol       volumes  code shared by csi and docker
    files    store paths as files             csi      volumes of Kubernetes
    daemon   the processes of a mount         docker   volumes of Docker
    metrics  metrics for Prometheus
"""
