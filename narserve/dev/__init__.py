"""What ``./start-dev`` runs: the routing of a deployment on this machine, with live reload.

::

    supervisor      holds the socket, watches the files and starts the child
    child           answers the requests
    routing         the routing of ``vercel.json``
    lambdatarget    the routing of API Gateway to the Lambda handler
    apigateway      events and answers of API Gateway
    demo            makes a binary cache that needs no network
"""
