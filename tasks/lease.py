"""While a phase works: its lease is prolonged, and it is given up when it is to be, or when it does not move any more.

Who keeps the lease sees the phase only from outside, by what it reports; it ends it by a cancellation.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog
from sqlalchemy.exc import SQLAlchemyError

from haulier.errors import StepFailed
from haulier.services import chain, claims
from haulier.services.context import Context
from models import Phase
from tasks.bandwidth import CARRYING, Allowance

log = structlog.get_logger()

Result = TypeVar("Result")


@dataclass(slots=True)
class Lease:
    """A claim that is kept while its phase works.

    `progress` and `marks` are the phase's own, which it changes; `stall_s` is how long they may stay as they are before
    the guest is paused, 0 for ever. In the pause it is the lease's own length there: who makes a guest stand still and
    does not move is no better than who has died.
    """

    context: Context
    claim: claims.Claim
    allowance: Allowance
    progress: dict[str, Any]
    marks: dict[str, float]
    stall_s: float

    async def hold_for(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Do the work and return its result.

        Raises what the work raises, or StepFailed `given_up` or `stalled` after it was cancelled.
        """
        phase, keeper = asyncio.create_task(work), asyncio.create_task(self._keep())
        asking = asyncio.create_task(self.allowance.keep_asking())
        try:
            await asyncio.wait({phase, keeper}, return_when=asyncio.FIRST_COMPLETED)
            if not phase.done():
                phase.cancel()
                try:
                    await phase
                except asyncio.CancelledError:
                    raise keeper.result() from None
            return phase.result()
        finally:
            keeper.cancel()
            asking.cancel()

    async def _keep(self) -> StepFailed:
        """Prolong the lease until the step is to be given up; returns why."""
        settings = self.context.settings
        renewed = moved = time.monotonic()
        seen = self._picture()
        while time.monotonic() - renewed < settings.lease_s:
            await asyncio.sleep(min(settings.lease_s / 3, 1.0))
            self.allowance.look_again()
            if (picture := self._picture()) != seen or self.allowance.waits:
                seen, moved = picture, time.monotonic()
            if (limit_s := self._limit_s()) and time.monotonic() - moved > limit_s:
                return _stalled(self.claim.phase, limit_s)
            try:
                # The thread has our context with it.
                with self.context.database.at_once():
                    alive = await asyncio.to_thread(
                        chain.renew,
                        self.context,
                        self.claim,
                        lease_s=settings.lease_s,
                        progress=dict(self.progress) or None,
                    )
            except SQLAlchemyError as error:
                # A database that is away for a moment ends nothing as long as the lease lasts.
                log.warning("lease.not_renewed", step=self.claim.step_id, error=str(error).splitlines()[0])
                continue
            if not alive:
                break
            renewed = time.monotonic()
        return StepFailed("given_up", "the migration is being undone", "See the other steps.")

    def _picture(self) -> str:
        return f"{self.progress} {self.marks}"

    def _limit_s(self) -> float:
        """For how long the phase may stand still now; 0 is for ever."""
        if self.claim.undo or self.claim.phase not in CARRYING:
            return 0.0
        if "paused" in self.marks:
            return self.context.settings.pause_lease_s
        return self.stall_s and max(self.stall_s, self.allowance.longest_standstill_s)


def _stalled(phase: Phase, limit_s: float) -> StepFailed:
    return StepFailed(
        "stalled", f"{phase} has not moved for {limit_s:g} s", "Is the link between the nodes up? --stall-timeout-s"
    )
