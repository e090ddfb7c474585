"""How fast a step may carry what it carries: its share of the budgets, as its worker was told last.

Who keeps the lease asks for it once a second. A phase asks before it begins something, and looks now and then while it
works; a copy by qemu-img, which takes no new limit, keeps the one that it began with.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from haulier.services.bandwidth import give_back, take_share
from haulier.services.chain import Claim
from haulier.services.context import Context
from models import Phase

# They carry bytes and report how many, so that one that stands still is seen. A TPM's few bytes need no share.
CARRYING = (Phase.SYNC_TPM, Phase.COPY_COLD, Phase.MIRROR_DISKS, Phase.MOVE_MEMORY, Phase.SEND_GENERATION)
_SHARING = CARRYING[1:]


@dataclass(slots=True)
class Allowance:
    """What a step may use, in bytes per second; a `share` of None is no limit, 0 is nothing until others have given.

    `using` is what its tools have been told.
    """

    context: Context
    claim: Claim
    share: int | None = 0
    using: int | None = 0
    _had: bool = field(default=False, repr=False)
    _changed: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    @property
    def waits(self) -> bool:
        """Whether nothing may be carried now."""
        return self._shares and self.share == 0

    @property
    def _shares(self) -> bool:
        return self.claim.phase in _SHARING and not self.claim.undo

    async def refresh(self) -> None:
        """Ask for the share, and say what is used of it. Raises SQLAlchemyError."""
        if self._shares:
            self.share = await asyncio.to_thread(take_share, self.context, self.claim, using=self.using)
            self._had = self._had or self.share is not None
            self._changed.set()

    async def pace(self, *, jobs: int = 1) -> int:
        """How fast each of so many jobs that begin now may go, in bytes per second; 0 is as fast as it goes.

        Waits until there is something for them.
        """
        while self.waits:
            self._changed.clear()
            await self._changed.wait()
        self.using = self.share
        return self.of_each(jobs)

    def of_each(self, jobs: int = 1) -> int:
        """The same as it is now; the least that there is, if it is nothing."""
        usual = self.context.settings.max_bandwidth_bytes_per_s
        if self.share is None:
            return usual
        share = max(1, self.share // max(1, jobs))
        return min(usual, share) if usual else share

    def end(self) -> None:
        """Nothing is carried any more."""
        if self._had:
            give_back(self.context, self.claim)
