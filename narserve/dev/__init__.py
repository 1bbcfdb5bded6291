"""What ``./start-dev`` runs: the deployment's routing on this machine, with live reload.

``supervisor`` holds the socket and watches the files, ``child`` answers the requests, ``routing`` reads
``vercel.json``, ``demo`` makes a binary cache that needs no network. The underscore in the path keeps Vercel from
publishing any of it.
"""
