"""The file formats of binary caches. Pure: no I/O, no clock, no environment, no threads.

::

    nixbase32        the digits of Nix's hashes
    nixhash          NixHash: sha256:<hex, nix base 32 or base 64>, or SRI
    storepath        StorePath: /nix/store/<hash part>-<name>; splits a path into the store path and the rest
    narinfo          NarInfo: what a cache publishes about a store path; Quirk: its unusual properties
    narinfo_json     NarInfo as JSON, with the names of nix path-info
    cacheinfo        CacheInfo: nix-cache-info
    signature        Signature, PublicKey, SecretKey: Ed25519
    contentaddress   ContentAddress: the CA field, and the store path that follows from it
    derivation       Derivation: a .drv file
    listing          NarListing, Node, ListingBuilder: the files in a NAR and their offsets (.ls files)
    listing_json     reads the JSON of .ls files
    resolve          resolves a path in a listing, following links
    names            NAR names as text and as bytes
    nar/             the archive format: grammar, events, parser, writer

Each class has ``parse`` and its inverse, checks its values on construction, and raises FormatError, or the format's subclass of
it, for invalid input. Import from the modules: this file defines no names, so that a program loads only what it needs.
"""
