"""What answers a request: each handler takes its URL apart and chooses a response.

==============  ======================================================================
store           the main route: every URL below a store dir
store_url       the URL of a node in a store path, parsed
node            the answer to a request for one node of a store path
large           answers that are too large for the platform, sent by way of a bucket
pages           landing page, health, robots.txt, static files
openapi         /openapi.json
==============  ======================================================================
"""
