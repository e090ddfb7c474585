"""The chain under every disorder: lost, doubled and late messages, workers that die or stall, sweeps, cancels.

Hypothesis plays workers and time in any order; what must never be is asked after every move. At the end of each run the
disorder stops, and the migration must reach exactly one end.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import select

from haulier.errors import Refused
from haulier.services import chain, claims
from haulier.services.migrations import cancel_migration, retry_migration
from models import LIVE_CHAIN, Database, Event, Migration, Phase, Step, StepState
from tests.unit.services.conftest import renew
from tests.unit.services.world import LEASE_S, World, open_world

# HAULIER_TEST_EXAMPLES=500 looks longer than fits into the time of the unit tests.
EXAMPLES = int(os.environ.get("HAULIER_TEST_EXAMPLES", "4"))
ENDS = ("done", "undone", "refused", "cancelled")
WORD = st.integers(min_value=0, max_value=50)


class Disorder(RuleBasedStateMachine):
    """One migration; `held` are the claims that some worker believes in, dead messages may come again."""

    fresh: Callable[[ExitStack], World]

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.world = type(self).fresh(self.stack)
        self.world.file()
        self.view = self.world.view()
        self.old: list[Any] = []
        self.held: list[claims.Claim] = []
        self.done: Counter[int] = Counter()
        self.undone: list[Phase] = []
        self.undo_began = False
        self.target_won = False
        self.source_won = False

    def pick(self, some: list[Any], number: int) -> Any:
        return some[number % len(some)]

    # -- messages -----------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.world.sent)
    @rule(number=WORD)
    def deliver(self, number: int) -> None:
        message = self.pick(self.world.sent, number)
        self.world.sent.remove(message)
        self.old.append(message)
        self._claim(message)

    @precondition(lambda self: self.world.sent)
    @rule(number=WORD)
    def lose(self, number: int) -> None:
        self.old.append(self.world.sent.pop(number % len(self.world.sent)))

    @precondition(lambda self: self.old)
    @rule(number=WORD)
    def deliver_again(self, number: int) -> None:
        self._claim(self.pick(self.old, number))

    def _claim(self, message: Any) -> None:
        held = self.world.claim(message)
        if held is None:
            return
        assert self.world.state() not in ENDS, "a step of a migration that has ended was taken"
        if held.undo:
            self.undo_began = True
            if held.phase is Phase.MOVE_MEMORY:
                self.source_won = True  # this undo lets the guest run on the source
        else:
            assert not self.undo_began, "a step began while others were being undone"
            if held.phase is Phase.MOVE_MEMORY:
                hand = self.world.step(Phase.HAND_OVER)
                assert hand.started_at, "the guest may be paused, and nobody was ever there to take it"
        self.held.append(held)

    # -- workers ------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.held)
    @rule(number=WORD)
    def work_ends_well(self, number: int) -> None:
        held = self.pick(self.held, number)
        self.held.remove(held)
        before = self.world.picture()
        if held.undo:
            chain.complete_undo(self.world.context, held)
            if self.world.picture() != before:
                self.undone.append(held.phase)
        elif held.phase is Phase.HAND_OVER and not self.target_won and not self._take_over(held):
            self.world.fail(held)
        elif chain.complete(self.world.context, held, notes={}):
            self.done[held.step_id] += 1

    @precondition(lambda self: any(held.phase is Phase.HAND_OVER and not held.undo for held in self.held))
    @rule()
    def target_stands_by(self) -> None:
        hand = next(held for held in self.held if held.phase is Phase.HAND_OVER and not held.undo)
        chain.stand_by(self.world.context, hand)

    @precondition(lambda self: any(held.phase is Phase.HAND_OVER and not held.undo for held in self.held))
    @rule()
    def target_takes_over(self) -> None:
        """The commit, and then nothing more for now."""
        self._take_over(next(held for held in self.held if held.phase is Phase.HAND_OVER and not held.undo))

    def _take_over(self, held: claims.Claim) -> bool:
        won = self.world.commit(held, self.view)
        assert not (won and self.target_won), "the guest was handed over twice"
        self.target_won |= won
        return won

    @precondition(lambda self: self.held)
    @rule(number=WORD, outcome=st.sampled_from(chain.Outcome))
    def work_fails(self, number: int, outcome: chain.Outcome) -> None:
        held = self.pick(self.held, number)
        self.held.remove(held)
        self.world.fail(held, outcome=outcome)

    @precondition(lambda self: self.held)
    @rule(number=WORD)
    def worker_renews(self, number: int) -> None:
        held = self.pick(self.held, number)
        if not chain.renew(self.world.context, held, lease_s=LEASE_S):
            self.held.remove(held)
            self.world.fail(held)

    @precondition(lambda self: self.held)
    @rule(number=WORD, dies=st.booleans())
    def worker_stalls(self, number: int, *, dies: bool) -> None:
        """Its lease ends. If it is not dead, it will come back with a result that is too late."""
        held = self.pick(self.held, number)
        step = self.world.step(held.phase, held.side)
        if step.fence == held.fence and step.lease_until is not None:
            self.world.let_lease_end(held)
        if dies:
            self.held.remove(held)

    # -- others -------------------------------------------------------------------------------------------------------

    @rule(time_passes=st.booleans())
    def sweep(self, *, time_passes: bool) -> None:
        if time_passes:
            self.world.let_time_pass()
        self.world.sweep()

    @rule()
    def cancel(self) -> None:
        try:
            cancel_migration(self.world.context, 1)
        except Refused:
            assert self.world.state() != "running"

    @precondition(lambda self: self.world.shown() == "needs_operator")
    @rule()
    def operator_looks(self) -> None:
        assert retry_migration(self.world.context, 1) == 1

    # -- what must always be ------------------------------------------------------------------------------------------

    @invariant()
    def all_is_well(self) -> None:
        """One session for all of it: this is asked after every move."""
        with self.world.context.database.read() as session:
            migration = session.get_one(Migration, 1)
            vm, state = migration.vm, migration.state.value
            kinds = session.scalars(select(Event.kind).where(Event.kind.startswith("migration."))).all()
            steps = session.scalars(select(Step.state).order_by(Step.position)).all()
            self._one_side_wins(state, vm.node.name, vm.epoch)
        self._done_once_and_undone_in_reverse()
        self._ends_once(state, [kind.removeprefix("migration.") for kind in kinds], list(steps))

    def _one_side_wins(self, state: str, node: str, epoch: int) -> None:
        assert not (self.target_won and self.source_won)
        assert not (self.target_won and self.undone)
        assert (node, epoch) == (("beta", 1) if self.target_won else ("alpha", 0))
        assert self.target_won == (state in ("handed_over", "done"))

    def _done_once_and_undone_in_reverse(self) -> None:
        assert max(self.done.values(), default=0) <= 1
        order: tuple[Phase, ...] = tuple(rule.phase for rule in LIVE_CHAIN)
        numbers = [order.index(phase) for phase in self.undone]
        assert numbers == sorted(set(numbers), reverse=True)

    def _ends_once(self, state: str, kinds: list[str], steps: list[StepState]) -> None:
        assert len([kind for kind in kinds if kind in ENDS]) == (state in ENDS)
        if state in ENDS:
            assert not {StepState.READY, StepState.RUNNING, StepState.UNDO_READY, StepState.UNDOING} & set(steps)

    def teardown(self) -> None:
        """The disorder ends; with it so does the migration."""
        with self.stack:
            for _ in range(20):
                self.world.settle()
                if self.world.shown() != "needs_operator":
                    break
                retry_migration(self.world.context, 1)
            assert self.world.state() in ENDS, f"it hangs: {self.world.state()} {self.world.picture()}"
            self.target_won |= self.world.state() == "done"
            self.all_is_well()
            self._nothing_is_half_done()

    def _nothing_is_half_done(self) -> None:
        state, picture = self.world.state(), self.world.picture()
        if state == "done":
            assert picture == "d" * 11
        else:
            assert not set(picture[3:]) & set("df"), f"{state} with something left of it: {picture}"


def test_any_disorder_ends_well(database: Database, world_template: Path, tmp_path: Path) -> None:
    def fresh(stack: ExitStack) -> World:
        renew(database, world_template)
        return stack.enter_context(open_world(database, tmp_path))

    machine = type("Disorder", (Disorder,), {"fresh": staticmethod(fresh)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
