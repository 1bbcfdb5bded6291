"""What bytes mean. Pure: no I/O, no clock, no environment, no threads.

::

    nixbase32        the digits of Nix's hashes
    nixhash          NixHash: sha256:<hex, nix base 32 or base 64>, or SRI
    storepath        StorePath: /nix/store/<hash part>-<name>; splitting a path into it and what is below
    narinfo          NarInfo: what a cache knows of a store path; Quirk: what is odd about it; its fingerprint
    narinfo_json     NarInfo as JSON, with the names of nix path-info
    cacheinfo        CacheInfo: nix-cache-info
    signature        Signature, PublicKey, SecretKey: Ed25519
    contentaddress   ContentAddress: the CA field, and the store path that follows from it
    derivation       Derivation: a .drv file
    listing          NarListing, Node, ListingBuilder: what is in a NAR, and where (.ls files)
    listing_json     reads the JSON of .ls files
    resolve          what a path in a listing leads to
    names            NAR names as text and as bytes
    nar/             the archive itself: grammar, events, parser, writer

Each value has ``parse`` and its inverse, is checked when it is made, and raises a FormatError, or the subclass of it
that belongs to the format, for anything else. Import from the modules: this file stays empty of names, so that a
program loads what it needs.
"""
