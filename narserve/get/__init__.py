"""What ``nar-serve get`` writes.

::

    staging       the hidden directory beside the destination, and its renaming
    treewriter    files, directories and links in that directory
"""
