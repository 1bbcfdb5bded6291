"""``nar-serve csi``: store paths as volumes of Kubernetes, through the Container Storage Interface (CSI).

::

    server        gRPC on a socket, and error codes       schema  the messages, declared without generated code
    attributes    parses volumeAttributes of a pod        node    implements the calls
    registration  registers the plugin with kubelet

``narmount.volumes`` does the mounting. The specification is github.com/container-storage-interface/spec. Volumes that exist only
as long as their pods need only the Identity and Node services of CSI, and no sidecar containers.

gRPC is an optional dependency (``csi``) and slow to import: only ``server``, ``registration`` and ``schema`` import it.
"""
