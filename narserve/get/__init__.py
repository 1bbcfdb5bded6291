"""Writing of files and trees for ``nar-serve get``.

::

    staging       the hidden directory beside the destination, and the final rename
    treewriter    writes files, directories and links into that directory
"""
