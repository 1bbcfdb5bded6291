"""The server of ``nar-serve serve``: gunicorn with threads.

::

    listener    the listening socket, also of the development server
    master      the parent of the workers: configuration, signals, log
    worker      the processes that answer requests, each with many threads
"""
