"""From a PathInfo to the bytes of its NAR: the best source first, another one if it fails.

::

    accessor      NarAccessor: the files of one NAR, at random access; NarBytes: some of its bytes
    source        NarSource: chooses between the disk cache, a fill, a part of the remote file, and a stream
    fallbacks     bytes from one source, with the rest from another one if it fails
    wholenar      NarStreams: a whole NAR as a verified stream, from several stores if needed
    remoteparts   RemoteParts: parts of a remote file that is not compressed, or that has an index
    cachednar     OpenNar: a cached NAR that is held open; ArrivingNar: a NAR that is being fetched
"""
