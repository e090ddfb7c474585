"""How fast a step may carry what it carries: its share of the budgets, as its worker was told last.

It is asked for beside the work, with each renewal of the lease. A phase looks before it begins something, and now and
then while it works; a copy by qemu-img, which takes no new limit, keeps the one that it began with.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import structlog
from sqlalchemy.exc import SQLAlchemyError

from haulier.services.bandwidth import divide_anew, give_back, most, take_share
from haulier.services.claims import Claim
from haulier.services.context import Context
from models import Phase

log = structlog.get_logger()
# They carry bytes and report how many, so that one that stands still is seen. A TPM's few bytes need no share.
CARRYING = (Phase.SYNC_TPM, Phase.COPY_COLD, Phase.MIRROR_DISKS, Phase.MOVE_MEMORY, Phase.SEND_GENERATION)
_SHARING = CARRYING[1:]
# QEMU takes less than ten bytes for no limit.
_LEAST = 1 << 10
# A mirror sends so much at once, and then stands still until its limit allows the next.
_BURST_BYTES = 16 << 20


@dataclass(slots=True)
class Allowance:
    """What a step may use, in bytes per second; a `share` of None is no limit, 0 is nothing until others have given.

    `using` is what its tools have been told, `waits` that it does nothing but wait for its share.
    """

    context: Context
    claim: Claim
    share: int | None = 0
    using: int | None = 0
    waits: bool = False
    _fixed: bool = field(default=False, repr=False)
    _each: int = field(default=0, repr=False)
    _due: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    _changed: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    _asking: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)

    def __post_init__(self) -> None:
        if not self._shares:
            self.share = None

    @property
    def _shares(self) -> bool:
        return self.claim.phase in _SHARING and not self.claim.undo

    async def keep_asking(self) -> None:
        """Know the share, and say what is used of it, now and each time that it is due, until cancelled. A failure
        changes nothing.
        """
        while self._shares:
            self._due.clear()
            try:
                await self.ask()
            except Exception as error:  # noqa: BLE001 - the step goes on with what it has
                log.warning("bandwidth.not_asked", step=self.claim.step_id, error=str(error).splitlines()[:1])
            await self._due.wait()

    def look_again(self) -> None:
        """It is time to ask. Waits for nothing."""
        self._due.set()

    async def ask(self) -> None:
        """The same once. Raises what the database raises."""
        async with self._asking:
            # Its tools may be told of what it knows at any moment.
            using = self.using if self._fixed else most(self.using, self.share)
            self.share = await asyncio.to_thread(take_share, self.context, self.claim, using=using, fixed=self._fixed)
            self._changed.set()

    async def pace(self, *, jobs: int = 1) -> int:
        """How fast each of so many jobs that begin now may go, in bytes per second; 0 is as fast as it goes.

        Waits until there is something for them.
        """
        try:
            while self.share == 0:
                self.waits = True
                self._changed.clear()
                await self._changed.wait()
        finally:
            self.waits = False
        return self.of_each(jobs)

    @asynccontextmanager
    async def copying(self) -> AsyncIterator[int]:
        """Inside the block something is carried that takes no new limit: no faster than this, 0 is as it goes."""
        async with self._asking:
            self._fixed, self.share, self.using = True, 0, 0
        try:
            with suppress(SQLAlchemyError):
                await self.ask()
            yield await self.pace()
        finally:
            self._fixed, self.using = False, 0

    def of_each(self, jobs: int = 1) -> int:
        """How fast each of so many jobs may go now; 0 is as fast as it goes. From now on they may be using that."""
        usual = self.context.settings.max_bandwidth_bytes_per_s
        share = None if self.share is None else max(_LEAST, self.share // max(1, jobs))
        self._each = usual if share is None else min(usual or share, share)
        self.using = most(self.using, self._all(jobs))
        return self._each

    def has_told(self, jobs: int = 1) -> None:
        """So many have been told what `of_each` said last, and no others are there."""
        self.using = self._all(jobs)

    def _all(self, jobs: int) -> int | None:
        return None if jobs and not self._each else self._each * jobs

    @property
    def longest_standstill_s(self) -> float:
        """For how long a job may show no progress only because its limit is low."""
        return 3 * _BURST_BYTES / self._each if self._each else 0.0

    def end(self, *, done: bool) -> None:
        """The step has ended. What was not `done` may go on, as it was told, until it has been undone."""
        if done and self.share is not None:
            give_back(self.context, self.claim)
        elif self.claim.undo and self.claim.phase in _SHARING:
            divide_anew(self.context)
