"""The server of ``nar-serve serve``: the master of gunicorn, and workers with an event loop and threads.

::

    listener     the listening socket, also used by the development server
    openfiles    the limit of open files, and how many connections fit into it
    master       the parent process of the workers: configuration, signals, log
    preload      imports modules before the workers are forked
    worker       the processes that answer requests
    acceptor     accepts connections, and decides when a worker does so
    connections  the connections of a worker, and the threads that answer their requests
    connection   the steps of one connection
    requesthead  detects and parses the head of a request
    responder    calls the application, and writes its response
    filesender   sends a file over a connection, without a thread
    iopool       threads that read files into the page cache
    progress     measures whether a client is too slow
    loop         the event loop: sockets, calls from threads, timeouts
"""
