"""HTTP semantics: values in, values out. Nothing here knows Flask or does I/O.

==============  ======================================================================
conditional     If-Match and the other conditions of a request, ETags (RFC 9110, section 13)
ranges          the Range header (RFC 9110, section 14)
negotiation     the Accept header (RFC 9110, section 12)
mediatypes      Content-Type, by the name or by the first bytes
text            names in URLs, in headers and on pages
noderef         which node of which NAR an answer is about, and its validators
==============  ======================================================================
"""
