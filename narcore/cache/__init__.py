"""The disk cache: complete, verified NARs in a directory that any number of processes share. It fetches nothing itself.

::

    narcache    NarCache: opens cached NARs, and starts or joins the fill of a missing one
    cached      CachedNar: a complete NAR, open to be read; Verifier: whether a file is the NAR that its name says
    fill        Fill: a NAR that is being fetched, and its readers in this process
    part        PartFile: the file that a fill writes, and who of several processes writes it
    failures    why the last fill of a NAR failed, for all processes
    unpacked    single files out of cached NARs, as files of their own
    listings    the listing beside a cached NAR
    eviction    makes room: removes the least recently used entries
    reserve     Reserve: space that a process holds for small unpacked files
    slots       Slots: how many fills may run at once
    upkeep      removes what dead processes have left, verifies all entries
    counters    hits, misses and so on, summed over all processes
    layout      the file names of the directory, and the marks of verified files
    locks       locks between processes, and files that are replaced atomically
    errors      OSError as CacheFailure; why a fill ended without a fault
"""
