"""AWS Lambda behind a REST API of API Gateway.

``handler`` is called by the platform's own runtime client, and ``buffered`` makes whole answers for it; ``streaming`` is a
runtime client of ours, which streams them. ``restapi`` reads the events for both, ``application`` makes the app. The
underscore in the path keeps Vercel from publishing any of it.
"""
