"""The program ``nar-serve``: its command line, servers, serverless adapters and development server.

::

    program      the group of all commands, and the entry point
    commands     one module per command
    terminal     output, progress bars and exit codes
    session      the binary caches and running servers that a command reads, according to PATH and --store
    get          the staging directory of ``nar-serve get``, and the writer of the tree in it
    server       the gunicorn master and worker of ``nar-serve serve``, and the listening socket
    awslambda    the handler and the runtime client on AWS Lambda
    dev          the development server

This file imports nothing, because the Lambda package contains only this file and ``awslambda``.
"""
