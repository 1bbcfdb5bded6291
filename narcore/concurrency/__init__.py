"""Building blocks for threads and iterators, independent of Nix, HTTP and files.

::

    lru            LruMemory: a cache of limited weight, whose entries may expire
    singleflight   SingleFlight: concurrent calls with the same key share one call
    readahead      ReadAhead: a thread produces the next chunks
    background     BackgroundThread; WorkQueue: items processed by one thread; call_in_background: one call with a result
    hashing        BackgroundSha256: SHA-256 in a thread of its own
    closing        Stage, stage, close: iterators that close their sources
"""
