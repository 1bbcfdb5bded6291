"""``nar-serve docker-volume``: store paths as volumes of Docker, through the API of volume plugins.

::

    app      the nine endpoints, with JSON             options  checks names and options of volumes
    driver   implements the calls                      records  the volumes and their users, on disk
    service  the socket and its server                 users    which process uses a volume

``narmount.volumes`` does the mounting. The calls of dockerd are described in docs/extend/plugins_volume.md and plugin_api.md of
Docker.
"""
