"""A Flask app that serves the files of a Nix binary cache over HTTP.

==============  ======================================================================
index           the WSGI entry
factory         creates the app: routes, error handler, middleware
handlers        parse a URL and choose the response
responses       make responses from values
view            contents of the HTML pages, as values for the templates
http            HTTP semantics
errors          maps exceptions to error responses: one table of statuses
hosts           the host name of a single store path
proxies         X-Forwarded headers of trusted proxies
openapi         the OpenAPI document
telemetry       access log, metrics, format of the log
offload         responses that are too large for the platform, served from a bucket
==============  ======================================================================
"""
