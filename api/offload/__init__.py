"""Responses that are too large for the platform: uploaded to a bucket once, and downloaded from there by clients.

``bucket`` sends the requests to S3, ``presign`` signs URLs for clients, ``redirect`` combines both.
"""
