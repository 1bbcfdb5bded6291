"""The options that commands share, and the sources that they read: stores, or an *instance* (a running nar-serve).

::

    target           parses the PATH argument
    session          opens the stores and instances that the options and targets select
    instance         HTTP client of a running nar-serve
    pluginoptions    options of the volume plugins
    instancestore    a running nar-serve as a store
"""
