"""Store paths as files: the answers to the kernel's requests.

::

    filesystem   what each request means for store paths     opennars      cached NARs that are open
    storepaths   finding and opening store paths             passthrough   files that the kernel reads itself
    pathnumbers  the number of each store path               missingnames  names that no store has
    early        reads before the NAR is verified            prefetch      fetches closures in the background
"""
