"""The file of trusted certificate authorities that the environment names."""

from collections.abc import Mapping

# The order: first the two variables that the library requests reads, then the variable of Nix, then the variable of OpenSSL.
CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NIX_SSL_CERT_FILE", "SSL_CERT_FILE")


def ca_file(environ: Mapping[str, str]) -> str | None:
    """Return the path of the CA bundle in the first of the variables that is set; None if none is set."""
    return next((environ[name] for name in CA_VARIABLES if environ.get(name)), None)
