"""What the commands print.

::

    output      standard output, and how names are shown on a terminal
    exits       exit codes, and the lines about errors on standard error
    progress    progress bars, and the line about a slow server
"""
