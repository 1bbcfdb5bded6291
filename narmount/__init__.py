"""``nar-serve mount``: store paths as a read-only file system that fills itself from binary caches.

It speaks the kernel's FUSE protocol itself. One process (the holder) mounts and keeps the device open, and another (the worker)
answers; when the worker ends, whatever the reason, a new one goes on where it was.

::

    fuse     the kernel's FUSE protocol       volumes  what Kubernetes and Docker volumes share
    files    store paths as files             csi      volumes of Kubernetes
    daemon   the processes of a mount         docker   volumes of Docker
    metrics  metrics for Prometheus
"""
