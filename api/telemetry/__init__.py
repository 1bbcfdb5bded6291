"""What the operator sees of the requests: logs and metrics.

==============  ======================================================================
exchange        one request and its answer, measured by a WSGI middleware
accesslog       one line for each request
metrics         /metrics for Prometheus
instruments     turns the access log and the metrics on, as the settings say
logs            the format of the log: text or JSON
==============  ======================================================================
"""
