"""Whether this machine has a cloud's metadata service, which gives credentials to the programs on it.

The libraries find out by waiting for an answer, for minutes on a machine that swallows the packets. Here it is one
short question, as boto3 asks it: who does not answer within a second is not there, and the store is read unsigned.
"""

import http.client
from collections.abc import Mapping
from urllib.parse import urlsplit

SECONDS = 1.0
LINK_LOCAL = "http://169.254.169.254"


def answers(method: str, url: str, headers: Mapping[str, str]) -> bool:
    """Whether the service at ``url`` (http) answers with 200. No proxy is asked; a firewall may answer with a refusal."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=SECONDS)
    try:
        connection.request(method, parts.path or "/", headers=dict(headers))
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
