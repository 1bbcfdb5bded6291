"""HTTP semantics as pure functions. These modules do no I/O and do not use Flask.

==============  ======================================================================
conditional     If-Match and the other conditions of a request, ETags (RFC 9110, section 13)
ranges          the Range header (RFC 9110, section 14)
negotiation     the Accept header (RFC 9110, section 12)
mediatypes      Content-Type, from the file name or from the first bytes
text            names in URLs, in headers and on pages
noderef         identifies the node of a NAR that a response is about; makes its validators
basis           whether all data of an answer is verified, and the headers that say so
==============  ======================================================================
"""
