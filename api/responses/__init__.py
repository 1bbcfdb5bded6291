"""Values into responses: the modules here set ETag, Cache-Control, Content-Type and the other headers of an answer.

==============  ======================================================================
files           a regular file: conditions, ranges, bytes
fileview        a regular file as a page (?view)
listing         a directory: HTML, or JSON for programs
archives        a subtree as tar, zip or NAR
formats         what ?format= can ask for
values          a value as JSON: a narinfo, the OpenAPI document
redirects       a redirect to another URL of this server
landing         the landing page
templates       HTML pages and their static files: how they are rendered and sent
limits          the largest answer that the platform can carry
body            bytes on their way to the WSGI server
base            what all answers have in common: the Response class, safety headers, 304
==============  ======================================================================
"""
