"""Responses that are too large for the platform: uploaded to a bucket once, and downloaded from there by clients.

``bucket`` is the bucket of NAR_OFFLOAD_URL, ``presign`` signs URLs for clients, ``redirect`` combines both.
"""
