"""The program ``nar-serve``: its command line, servers, serverless adapters and development server."""
