"""``nar-serve mount``: store paths as a read-only file system that fills itself from binary caches.

It implements the kernel's FUSE protocol itself. One process, the holder, mounts the file system and keeps the device open. Another
process, the worker, answers requests. When the worker ends for any reason, a new worker takes over.

::

    fuse     the kernel's FUSE protocol       volumes  what Kubernetes and Docker volumes share
    files    store paths as files             csi      volumes of Kubernetes
    daemon   the processes of a mount         docker   volumes of Docker
    metrics  metrics for Prometheus
"""
