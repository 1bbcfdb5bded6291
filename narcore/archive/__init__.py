"""A subtree of a NAR as an archive, created in one pass over the NAR and in constant memory.

Archives are reproducible: the same subtree always gives the same bytes. Times, modes and owners are those of the Nix store: 1 s
after the epoch, 0444 or 0555, and root.

============  ==================================================================================
``contents``  the nodes of a subtree, and the contents of its files from a single read
``tar``       POSIX pax (IEEE Std 1003.1), for names of any length and with any bytes
``zip``       with 64-bit sizes where needed; modes, links and times as Info-ZIP writes them
``nar``       the NAR format; the archive of a whole store path has the narinfo's NarHash
============  ==================================================================================
"""

from narcore.archive.nar import nar
from narcore.archive.tar import tar
from narcore.archive.zip import zip_archive

__all__ = ["nar", "tar", "zip_archive"]
