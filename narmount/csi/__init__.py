"""``nar-serve csi``: store paths as volumes of Kubernetes, by the Container Storage Interface.

::

    server        the sockets, and errors as codes        schema  the messages, without a .proto or generated code
    attributes    what a pod may say, checked once        node    what the calls do
    registration  how kubelet finds the plugin

The mounts are ``narmount.volumes``. The specification is github.com/container-storage-interface/spec; only the Identity and the
Node service are needed for volumes that live as long as their pods, and no sidecar containers.

gRPC is an extra (``csi``) and slow to import: only ``server``, ``registration`` and ``schema`` do.
"""
