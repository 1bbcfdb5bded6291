"""nar-serve over HTTP: a Flask app that serves the files of a Nix binary cache.

==============  ======================================================================
index           the WSGI entry
factory         makes the app: routes, error handler, middleware
handlers        what answers a request
responses       values into responses
view            what pages show, as values for the templates
http            HTTP semantics
errors          exceptions into answers: one table of statuses
hosts           store paths with a host name of their own
proxies         the headers of trusted proxies
openapi         the OpenAPI document
telemetry       access log, metrics, format of the log
offload         answers that are too large for the platform, in a bucket
==============  ======================================================================
"""
