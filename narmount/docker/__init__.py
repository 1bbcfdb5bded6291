"""``nar-serve docker-volume``: store paths as volumes of Docker, by the API of its volume plugins.

::

    app      the nine endpoints: JSON in, JSON out     options  names and options of volumes, and refusals
    driver   what the endpoints do                     records  which volumes there are, and who uses them: on disk
    service  the socket, and the server on it          users    who asked for a mount, and whether anybody sees it

The mounts themselves are ``narmount.volumes``. What dockerd asks is in docs/extend/plugins_volume.md and plugin_api.md of Docker.
"""
