"""The disk cache: complete, verified NARs in a directory that any number of processes share. It does not fetch NARs itself.

::

    narcache    NarCache: opens cached NARs, and starts or joins the fill of a missing one
    cached      CachedNar: a complete NAR, open for reading; Verifier: checks a file against the hash in its name
    openfiles   OpenFiles: one descriptor per NAR, shared by its readers
    fill        Fill: a NAR that is being fetched, and its readers in this process
    part        PartFile: the file that a fill writes; decides which process writes it
    failures    the error of the last fill of a NAR, for all processes
    unpacked    single files of cached NARs, copied to files of their own
    listings    the listing next to a cached NAR
    eviction    removes the least recently used entries to make room
    reserve     Reserve: space that a process reserves for small unpacked files
    slots       Slots: the limit on concurrent fills
    pace        Pace: whether a fill is slow
    upkeep      removes the files that dead processes left; verifies all entries
    counters    hits, misses and other events, summed over all processes
    layout      the file names in the directory, and the marks of verified files
    locks       locks between processes, and files that are replaced atomically
    errors      converts OSError to CacheFailure; exceptions for a fill that stops early without a fault
"""
