"""A subtree of a NAR as an archive in another format, in one pass over the NAR and in constant memory.

Archives are reproducible: the same subtree gives the same bytes, with the times, modes and owners that the Nix store has (1 s
after the epoch, 0444 or 0555, root).

============  ==================================================================================
``contents``  the nodes of a subtree, and the contents of its files out of one read
``tar``       POSIX pax (IEEE Std 1003.1), so names of any length and any bytes
``zip``       with 64-bit sizes where they are needed, modes, links and times as Info-ZIP has them
``nar``       of the whole store path it has the NarHash of the narinfo
============  ==================================================================================
"""

from narcore.archive.nar import nar
from narcore.archive.tar import tar
from narcore.archive.zip import zip_archive

__all__ = ["nar", "tar", "zip_archive"]
