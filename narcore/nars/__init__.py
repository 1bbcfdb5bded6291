"""The bytes of the NAR that a PathInfo describes. They come from the best source, or from another source if the first fails.

::

    accessor      NarAccessor: random access to the files of one NAR; NarBytes: some of its bytes
    source        NarSource: chooses between the disk cache, a fill (a download into the cache), the shared tier, a range, a stream
    fallbacks     bytes from one source; if the source fails, the rest from another source
    wholenar      NarStreams: a whole NAR as a verified stream, from several stores if needed
    remoteparts   RemoteParts: ranges of a remote file that is uncompressed, or that has an index
    opennar       OpenNar: a cached NAR that is held open; ArrivingNar: a NAR that is being fetched
"""
