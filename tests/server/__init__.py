"""``nar-serve serve``: the server, its log, its metrics, and proxies in front of it."""
