"""What a command reads.

::

    target           what an argument names
    session          opens the stores and instances that the options and targets name
    instance         a running nar-serve, as a client sees it
    instancestore    a running nar-serve as a store
"""
