"""Lookup of narinfos by hash part: which substituters are asked, in which order, and which answers are trusted.

::

    lookup         Lookup: asks the substituters, checks signatures, caches answers
    substituter    Substituter: a store with its priority, its nix-cache-info and its circuit breaker
    breaker        CircuitBreaker: pauses requests to a store that keeps failing
    pathinfo       PathInfo: a narinfo, its store, and why it is trusted
    addressproof   AddressProof: checks that contents match their content address
"""
