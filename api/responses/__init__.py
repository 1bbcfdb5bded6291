"""Makes responses from values: these modules set ETag, Cache-Control, Content-Type and the other headers.

==============  ======================================================================
files           a regular file: conditions, ranges, bytes
fileview        a regular file as a page (?view)
listing         a directory: HTML, or JSON for programs
archives        a subtree as tar, zip or NAR
formats         the values of ?format=
values          a value as JSON: a narinfo, the OpenAPI document
redirects       a redirect to another URL of this server
landing         the landing page
templates       renders and sends HTML pages and their static files
limits          the size limit of a response
body            bodies of responses, as the WSGI server reads them
base            shared by all responses: the Response class, security headers, 304
==============  ======================================================================
"""
