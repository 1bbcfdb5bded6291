"""Request handlers: each handler parses a URL and chooses the response.

==============  ======================================================================
store           the main route: every URL below a store dir
store_url       parser for the URL of a node in a store path
node            the response to a request for one node of a store path
reads           the reads of one response, and whether they are verified
large           redirects to a bucket if a response is too large for the platform
pages           landing page, health, robots.txt, static files
readiness       the check behind /readyz
openapi         /openapi.json
==============  ======================================================================
"""
