"""Which certificate authorities are trusted, where the environment says so."""

from collections.abc import Mapping

# The first two as requests reads them, then Nix's own and OpenSSL's.
CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NIX_SSL_CERT_FILE", "SSL_CERT_FILE")


def ca_file(environ: Mapping[str, str]) -> str | None:
    """The bundle that the first of the variables names; None where none is set."""
    return next((environ[name] for name in CA_VARIABLES if environ.get(name)), None)
