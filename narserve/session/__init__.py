"""The sources that a command reads: the stores of ``--store``, or a running nar-serve (an *instance*).

::

    target           parses the PATH argument
    session          opens the stores and instances that options and targets name
    instance         HTTP client of a running nar-serve
    instancestore    a running nar-serve as a store
"""
