"""A binary cache behind HTTP.

::

    store    HttpBinaryCacheStore: statuses as store errors
    client   requests of one store: connection pool, credentials, redirects, retries
    body     the body of a response, resumed where the connection was cut
    guard    which addresses a redirect may lead to
    retry    how often a request is repeated, and when; pure
    urls     the store's URL and the URLs that may be requested for it; pure text
"""
