"""Files are removed from a node. The rows have the last word: whatever an error somewhere else makes of the paths, what
is a VM's volume, or a replica, stays.
"""

from __future__ import annotations

from pathlib import Path

from haulier.errors import NeedsOperator
from haulier.hypervisor.images import destroy_image, remove_image
from haulier.hypervisor.volume_paths import innermost, require_inside
from haulier.services.allocations import paths_in_use, storage_folders
from haulier.services.context import Context


class Freeing:
    """Frees files of one node, by the rows as they were when it was made."""

    def __init__(self, context: Context, node_id: int) -> None:
        self._folders = storage_folders(context, node_id)
        self._in_use = paths_in_use(context, node_id)

    def free(self, path: Path, *, is_secret: bool = False) -> None:
        """Remove a file; one that `is_secret` is overwritten first. Safe to call twice.

        Raises NeedsOperator for a path that leads out of its storage, or that a row names: it was not removed.
        """
        require_inside(path, innermost(path, self._folders), error=NeedsOperator)
        if path in self._in_use:
            raise NeedsOperator("volume_in_use", f"{path} is a VM's volume", "Nothing more was freed.")
        (destroy_image if is_secret else remove_image)(path)
