"""Store paths as files: the answers to the kernel's requests.

::

    filesystem   what each request means for store paths     opennars      cached NARs that are open
    pathnumbers  the number of each store path               passthrough   files that the kernel reads itself
    early        reads before the NAR is verified            missingnames  names that are in no store
    prefetch     closures that are fetched ahead
"""
