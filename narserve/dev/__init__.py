"""The development server that ``./start-dev`` runs: emulates the routing of a deployment, with live reload.

::

    supervisor      holds the listening socket, watches the files and starts the child process
    child           the process that answers the requests
    routing         the routing of Vercel, according to ``vercel.json``
    lambdatarget    the routing of API Gateway to the Lambda handler
    apigateway      events and responses of API Gateway
    demo            makes a demo binary cache, which needs no network
"""
