"""Files are removed from a node. The rows have the last word: whatever an error somewhere else makes of the paths, what
is a VM's volume, or a replica, stays.
"""

from __future__ import annotations

from pathlib import Path

from haulier.errors import NeedsOperator
from haulier.hypervisor.storage import driver_at
from haulier.services.allocations import paths_in_use, storage_places
from haulier.services.context import Context


class Freeing:
    """Frees volumes of one node for an attempt, by the rows as they were when it was made."""

    def __init__(self, context: Context, node_id: int, *, attempt_id: int) -> None:
        self._places = storage_places(context, node_id)
        self._in_use = paths_in_use(context, node_id, attempt_id=attempt_id)

    def free(self, path: Path, *, is_secret: bool = False) -> None:
        """Remove a volume; one that `is_secret` is overwritten first. Safe to call twice.

        Raises NeedsOperator for a path that leads out of its storage, or that a row names: it was not removed.
        """
        driver = driver_at(path, self._places)
        driver.require(path, error=NeedsOperator)
        if path in self._in_use:
            raise NeedsOperator("volume_in_use", f"{path} is a VM's volume", "Nothing more was freed.")
        (driver.destroy if is_secret else driver.remove)(path)
