"""``nar-serve serve``: the server of one's own, its log, its metrics, and proxies in front of it."""
