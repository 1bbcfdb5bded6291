"""The server of ``nar-serve serve``: gunicorn with threads.

::

    listener    the listening socket, also used by the development server
    master      the parent process of the workers: configuration, signals, log
    worker      the processes that answer requests, each with many threads
"""
