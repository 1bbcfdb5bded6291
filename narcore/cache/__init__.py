"""The disk cache: complete, verified NARs in a directory that any number of processes share. It does not fetch anything itself.

::

    narcache    NarCache: opens cached NARs, and starts or joins the fill of a missing one
    cached      CachedNar: a complete NAR, open for reading; Verifier: checks that a file is the NAR that its name says
    openfiles   OpenFiles: one descriptor per NAR, shared by its readers
    fill        Fill: a NAR that is being fetched, and its readers in this process
    part        PartFile: the file that a fill writes, and the choice of the process that writes it
    failures    the error of the last fill of a NAR, for all processes
    unpacked    single files of cached NARs, copied to files of their own
    listings    the listing next to a cached NAR
    eviction    removes the least recently used entries to make room
    reserve     Reserve: space that a process reserves for small unpacked files
    slots       Slots: the limit on concurrent fills
    pace        Pace: whether a fill is slow
    upkeep      removes the files that dead processes left, and verifies all entries
    counters    hits, misses and other events, summed over all processes
    layout      the file names in the directory, and the marks of verified files
    locks       locks between processes, and files that are replaced atomically
    errors      converts OSError to CacheFailure; the reasons why a fill ends without an error
"""
