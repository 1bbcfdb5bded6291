"""Transformations of byte streams: iterators in, iterators out. This package opens no files and starts no threads.

::

    compression    decompress: every ``Compression`` of a narinfo that is supported
    members        the loop over the streams, frames or members of a compressed file
    decoders       decoders of several libraries with a common interface
    zstd, lzip     the decoders of these two formats
    xzblocks       random access to an xz file by its index
    integrity      verified: checks NarSize and NarHash
    contentcheck   addressed: checks a content address
    slicing        a part of a stream
"""
