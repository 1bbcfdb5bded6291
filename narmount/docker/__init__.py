"""``nar-serve docker-volume``: store paths as volumes of Docker, through the API of volume plugins.

::

    app      the nine endpoints, with JSON             options  checks names and options of volumes
    driver   implements the calls                      records  the volumes and their users, on disk
    service  the socket and its server                 users    which process uses a volume

``narmount.volumes`` does the mounting. Docker's docs/extend/plugins_volume.md and plugin_api.md describe the calls of dockerd.
"""
