"""From a hash part to a narinfo: which substituters are asked, in which order, and which answer is trusted.

::

    lookup         Lookup: asks the substituters, checks signatures, remembers answers
    substituter    Substituter: a store with its priority, its nix-cache-info and its circuit breaker
    breaker        CircuitBreaker: a store that keeps failing is not asked for a while
    pathinfo       PathInfo: a narinfo, its store, and why it is trusted
    addressproof   AddressProof: whether contents are those of their content address
"""
