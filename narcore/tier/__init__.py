"""The shared tier: NARs in a bucket or a directory that several instances share. An instance reads and verifies parts of a NAR.

::

    layout     the names of the objects
    seekable   NARs as seekable zstd: cuts a NAR into frames, and writes the seek table
    index      the index of a NAR: its listing and the digests of its frames, signed
    reader     TierReader: listings and parts of NARs
    writer     TierWriter: adds NARs
    uploads    TierUploads: adds NARs in the background
    check      checks every object of the tier that belongs to a store path

The tier is also a plain binary cache, from which Nix can copy: ``<hash>.narinfo`` has the URL ``nar/<narhash>.nar.zst``. Only
nar-serve uses the index, ``nar/<narhash>.index``. NARs and indexes are named after the NarHash, so they never change, and store
paths with the same NAR share them.
"""
