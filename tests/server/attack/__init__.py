"""Attacks by slow clients and unresponsive stores on a real ``nar-serve serve``, and what other clients notice of them.

::

    python -m tests.server.attack                                 # everything, 30 s for each attack
    python -m tests.server.attack --seconds 10 --only dripped-heads

``attackers`` is a process that holds thousands of connections. ``probing`` measures the response times of other requests
meanwhile. ``site`` starts the server. The other modules are the proofs: ``slowclients`` (seven attacks), ``crowd`` (10,000 slow
readers), ``stores`` (unresponsive and slow stores) and ``stopping`` (SIGTERM and SIGHUP under load). Each yields the rows of a
table, with goals; ``tests/server/test_attacks.py`` runs them in a few seconds.
"""
