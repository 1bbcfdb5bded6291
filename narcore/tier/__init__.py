"""The shared tier: NARs in a bucket or a directory. Any instance can read parts of a NAR, and verify each part.

::

    layout     the names of the objects
    seekable   NARs as seekable zstd: cutting into frames, and the seek table
    index      the index of a NAR: its listing and the digests of its frames, signed
    reader     TierReader: listings and parts of NARs
    writer     TierWriter: adds NARs
    uploads    TierUploads: adds NARs in the background
    check      checks every object of the tier that belongs to a store path

The tier is also a plain binary cache, from which Nix can copy: ``<hash>.narinfo`` has the URL ``nar/<narhash>.nar.zst``. The index
``nar/<narhash>.index`` belongs to nar-serve. Objects are named after the NarHash, so they never change, and all stores that have
the same NAR share it.
"""
