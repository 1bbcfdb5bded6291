"""Adapters for AWS Lambda behind a REST API of API Gateway.

::

    handler        the function that Lambda's own runtime client calls
    buffered       turns WSGI responses into whole Lambda responses for ``handler``
    streaming      a runtime client that streams responses; ``stream`` is the wrapper script that starts it
    restapi        reads the events, for both
    application    makes the WSGI application, for both
"""
