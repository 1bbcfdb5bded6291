"""Detects the metadata service of a cloud, which provides credentials to the programs on a machine.

The libraries wait for an answer of the service, which takes minutes on a machine that drops the packets. This module sends one
request, as boto3 does. If no answer arrives within one second, it assumes that there is no service.
"""

import http.client
from collections.abc import Mapping
from urllib.parse import urlsplit

SECONDS = 1.0
LINK_LOCAL = "http://169.254.169.254"


def answers(method: str, url: str, headers: Mapping[str, str]) -> bool:
    """Return whether the service at ``url`` (http) answers with 200. Other statuses may come from a firewall. Uses no proxy."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=SECONDS)
    try:
        connection.request(method, parts.path or "/", headers=dict(headers))
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
