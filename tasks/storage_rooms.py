"""How much is free on each of a node's storages, for whoever chooses places."""

from __future__ import annotations

import threading

import structlog

from haulier.clock import Pace
from haulier.hypervisor.storage import driver_of
from haulier.services.context import Context
from haulier.services.nodes import storage_places

log = structlog.get_logger()
# LVM takes a while to answer.
_LOOK_EVERY_S = 30.0


class StorageRooms:
    """One for a worker's life. It looks in a thread of its own: a storage whose server is away answers never, and its
    node lives.
    """

    def __init__(self, context: Context, node_id: int) -> None:
        self._context = context
        self._node_id = node_id
        self._pace = Pace(_LOOK_EVERY_S)
        self._seen: dict[str, int] = {}
        self._looking = threading.Thread()

    def now(self) -> dict[str, int]:
        """The free bytes by the storages' names, as they were seen last. One that cannot be used has none, one that
        does not say how much it has is left out.
        """
        if not self._looking.is_alive() and self._pace.is_due():
            self._looking = threading.Thread(target=self._look, name="storages", daemon=True)
            self._looking.start()
        return self._seen

    def _look(self) -> None:
        seen = dict[str, int]()
        try:
            for name, place in storage_places(self._context, self._node_id).items():
                driver = driver_of(place)
                free = 0 if driver.problem() else driver.free_bytes()
                if free is not None:
                    seen[name] = free
        except Exception:
            log.exception("storages.unseen")
            return
        self._seen = seen
