"""``nar-serve serve``: a server of one's own, gunicorn with threads.

::

    command    the command line, and what is checked before anything is started
    master     the process that the others are children of: configuration, signals, log
    worker     the processes that answer, each with many threads

The name begins with ``_``, so that Vercel makes no functions of what is here.
"""
