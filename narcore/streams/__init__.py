"""Transformations of byte streams: each takes an iterator and returns an iterator.
This package opens no files and starts no threads.

::

    compression    decompress: all supported values of a narinfo's ``Compression``
    members        the loop over the streams, frames or members of a compressed file
    decoders       decoders of several libraries with a common interface
    zstd, lzip     the decoders of these two formats
    xzblocks       random access to an xz file through its index
    integrity      verified: checks a NAR's size and hash against its narinfo
    contentcheck   addressed: checks a content address
    slicing        a part of a stream
"""
