"""The processes of a mount, and the socket that they answer on.

::

    holder   mounts, keeps the device open, starts workers     control        client of the control socket
    worker   the process that answers the kernel               controlserver  server of the control socket
    options  how a file system is mounted                      ratelimit      a limit of the number of log lines
"""
