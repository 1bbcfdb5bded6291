"""Output of the commands, and their exit codes.

::

    output        standard output, and quoting of names on a terminal
    exits         exit codes, and error messages on standard error
    progress      progress bars, and a message about a slow server
    statusoutput  output of ``--status``, as text or as JSON
"""
