"""The processes of a mount, and its control socket.

::

    holder   mounts, keeps the device open, starts workers    control        client of the control socket
    worker   answers the kernel                               controlserver  server of the control socket
    options  what these processes pass to each other          ratelimit      a limit for the number of log lines
    upkeep   periodic tasks of the worker
"""
