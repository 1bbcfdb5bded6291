"""A subtree of a NAR as an archive, created in one pass over the NAR and in constant memory.

Archives are reproducible: the same subtree gives the same bytes, with the times, modes and owners of the Nix store (1 s after the
epoch, 0444 or 0555, root).

============  ==================================================================================
``contents``  the nodes of a subtree, and the contents of its files from a single read
``tar``       POSIX pax (IEEE Std 1003.1), for names of any length and with any bytes
``zip``       with 64-bit sizes where needed, and with modes, links and times like Info-ZIP's
``nar``       the NAR of a whole store path has the NarHash of the narinfo
============  ==================================================================================
"""

from narcore.archive.nar import nar
from narcore.archive.tar import tar
from narcore.archive.zip import zip_archive

__all__ = ["nar", "tar", "zip_archive"]
