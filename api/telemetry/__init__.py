"""Logs and metrics of requests, for operators.

==============  ======================================================================
exchange        one request and its response, measured by a WSGI middleware
accesslog       the access log: one line per request
metrics         /metrics for Prometheus
instruments     turns on the access log and the metrics according to the settings
logs            the format of the log: text or JSON
==============  ======================================================================
"""
