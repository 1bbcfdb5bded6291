"""Files that are too large for one answer of the platform: put into a bucket once, and fetched from there.

``bucket`` is what is asked of S3, ``presign`` makes the URLs that a client may use, ``redirect`` puts both together.
"""
