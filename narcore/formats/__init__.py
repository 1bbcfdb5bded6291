"""The file formats of binary caches. This package uses no I/O, clock, environment or threads.

::

    nixbase32        the digits of Nix's hashes
    nixhash          NixHash: sha256:<hex, nix base 32 or base 64>, or SRI
    storepath        StorePath: /nix/store/<hash part>-<name>; splits a path into the store path and the rest
    narinfo          NarInfo: what a cache publishes about a store path; Quirk: unusual properties of a narinfo
    narinfo_json     NarInfo as JSON, with the names of nix path-info
    cacheinfo        CacheInfo: nix-cache-info
    signature        Signature, PublicKey, SecretKey: Ed25519
    contentaddress   ContentAddress: the CA field of a narinfo, and the store path that Nix computes from it
    derivation       Derivation: a .drv file
    listing          NarListing, Node, ListingBuilder: the files in a NAR and their offsets (.ls files)
    listing_json     reads the JSON of .ls files
    resolve          resolves a path in a listing, following links
    names            NAR names as text and as bytes
    nar/             the archive format: grammar, events, parser, writer

Most classes have ``parse`` and its inverse, and check their values on construction. For invalid input they raise FormatError or a
subclass. Import from the modules: this file defines no names, so that a program loads only what it needs.
"""
