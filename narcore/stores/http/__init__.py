"""A binary cache behind HTTP.

::

    store    HttpBinaryCacheStore: converts statuses to store errors
    client   HttpClient: connection pool, credentials, redirects and retries of one store
    body     HttpBody: the body of a response, resumed if the connection is cut
    guard    which addresses a redirect may lead to
    retry    how often and when a request is retried; only computes, does not wait
    urls     the store's URL, and the URLs that may be requested for it; only processes text, sends nothing
"""
