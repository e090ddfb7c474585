"""A migration under every disorder: two hosts, a broker that loses, doubles and delays, workers that die and stall.

Hypothesis plays workers, hosts, guest, database and time in any order; what must never be is asked between any two
effects. At the end of each run the disorder stops, and the migration must reach exactly one end with nothing lost or
left over. `make model` looks for longer; HAULIER_MODEL_RUNS says for how long.
"""

from __future__ import annotations

import os
from functools import partial
from itertools import product
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from haulier.errors import Refused
from haulier.fakes.pair import Move
from haulier.fakes.processes import FakeSwtpm
from haulier.fakes.qemu import FakeQemu, Memory
from haulier.services.migrations import cancel_migration, retry_migration
from haulier.services.recovery import sweep
from models import Migration, Phase
from tests.model.invariants import Truth, look_at_end, look_at_hosts, look_at_rows
from tests.model.world import DISK, NODES, QUEUES, Beginnings, Model, settle
from tests.unit.services.world import TARGET

# What is killed closes nothing; Python would, when it finds what is left of it, and says that it could not.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
USUAL_RUNS = 200
RUNS = int(os.environ.get("HAULIER_MODEL_RUNS", USUAL_RUNS))
# A long search is shared out among processes; the usual one always sees the same runs.
SHARES = os.cpu_count() or 1 if RUNS > USUAL_RUNS else 1
NUMBER = st.integers(min_value=0, max_value=11)
# From the beginning of `hand_over` to the pause there are some thirty effects, to the guest's new run some fifty.
AHEAD = st.one_of(st.integers(min_value=0, max_value=50), st.integers(min_value=20, max_value=46))
# The effects of `hand_over` and `move_memory` by number, from the pause to the guest's new run; all of them in a long
# search.
SWITCH_OVER = range(70) if RUNS > USUAL_RUNS else range(24, 42)
# Where a run begins: before the first step, or where the chain has come to one of these with nothing amiss.
BEGINNINGS = (
    *[Phase.HAND_OVER] * 5, Phase.RETIRE_SOURCE, Phase.OPEN_TARGET, Phase.RESERVE, Phase.MIRROR_DISKS, Phase.SYNC_TPM,
    Phase.CHECK,
)  # fmt: skip
DISASTERS = (
    "worker dies", "worker freezes", "task stalls", "QEMU dies", "swtpm dies", "host dies", "link breaks",
    "worker dies", "task stalls", "cancel", "stream loses the TPM", "message is lost", "message comes again",
    "nudges are lost", "database goes", "its time is over",
)  # fmt: skip
# Those that may end a migration while its target takes the guest.
DECIDING = ("its time is over", "cancel", "link breaks")
REPAIRS = (
    "worker starts", "worker thaws", "task wakes", "a moment passes", "time passes", "reconcile", "heartbeat",
    "worker starts", "time passes", "operator looks", "database comes back",
)  # fmt: skip
_Item = TypeVar("_Item")


def pick(some: list[_Item], number: int) -> _Item:
    return some[number % len(some)]


class Disorder(RuleBasedStateMachine):
    """One migration of a running, or a paused, guest."""

    model: Model
    beginnings: Beginnings

    def __init__(self) -> None:
        super().__init__()
        self.truth = Truth()
        self.looked_at = -1

    @initialize(beginning=st.sampled_from(BEGINNINGS), paused=st.sampled_from((False, False, False, True)), ahead=AHEAD)
    def begin(self, beginning: Phase, *, paused: bool, ahead: int) -> None:
        """From there it goes on in good order for so many effects: a disorder may begin between any two."""
        self.model.restore(self.beginnings[beginning, paused])
        self.model.after_effect = self.look_at_hosts
        self.truth.paused = paused
        for number in range(ahead):
            self.guest_writes()
            self._go_on(number)

    # -- order --------------------------------------------------------------------------------------------------------

    @rule(numbers=st.lists(NUMBER, min_size=1, max_size=8), writes=st.booleans())
    def play(self, numbers: list[int], *, writes: bool) -> None:
        """Each number is something that goes on: a message arrives, a worker does its next effect, a host moves."""
        for number in numbers:
            if writes:
                self.guest_writes()
            self._go_on(number)
            self.look_at_hosts()

    def _go_on(self, number: int) -> None:
        """Where nothing can go on, a moment passes."""
        arrivals = [Move(str(each), partial(self.model.deliver, each)) for each in self.model.deliverable]
        if moves := [*arrivals, *self.model.effects(), *self.model.pair.moves()]:
            pick(moves, number).make()
        else:
            self.model.let_time_pass(0.5)

    def guest_writes(self) -> None:
        """To its disk, and to its TPM if that answers."""
        for qemu in self.model.pair.running(FakeQemu):
            if qemu.runs:
                qemu.write_disk(DISK)
                told = self.truth.told
                self.truth.told = Memory(told.disk + 1, told.tpm + qemu.write_tpm())

    # -- disorder -----------------------------------------------------------------------------------------------------

    @rule(kind=st.sampled_from(DISASTERS), number=NUMBER)
    def disaster(self, kind: str, number: int) -> None:
        getattr(self, f"_{kind.replace(' ', '_').lower()}")(number)

    def _worker_dies(self, number: int) -> None:
        self.truth.disturbed = True
        self.model.kill_worker(self.model.workers[pick(list(QUEUES), number)])

    def _worker_freezes(self, number: int) -> None:
        self.truth.disturbed = True
        self.model.workers[pick(list(QUEUES), number)].frozen = True

    def _task_stalls(self, number: int) -> None:
        self.truth.disturbed = True
        if self.model.strands:
            pick(self.model.strands, number).stalled = True

    def _qemu_dies(self, number: int) -> None:
        node = pick(list(NODES), number)
        # What decides is on its way once the source has noted that the target has loaded all of it.
        decided = self.model.ask("SELECT id FROM step WHERE phase = 'move_memory' AND notes LIKE '%was_running%'")
        self.truth.guest_killed |= self.model.world.vm().node.name == node or bool(decided and node == TARGET)
        self.model.kill_processes(node, FakeQemu)

    def _swtpm_dies(self, number: int) -> None:
        self.model.kill_processes(pick(list(NODES), number), FakeSwtpm)

    def _host_dies(self, number: int) -> None:
        self._worker_dies(1 + number % 2)
        self._qemu_dies(number)
        self._swtpm_dies(number)

    def _link_breaks(self, _number: int) -> None:
        self.model.pair.cut()

    def _stream_loses_the_tpm(self, _number: int) -> None:
        self.model.pair.loses_tpm = True

    def _cancel(self, _number: int) -> None:
        try:
            cancel_migration(self.model.context, 1)
        except Refused:
            assert self.model.world.state() != "running"

    def _its_time_is_over(self, _number: int) -> None:
        if self.model.database.is_away:
            return
        self.model.world.change(Migration, timeout_s=0.001)
        sweep(self.model.context)

    def _message_is_lost(self, number: int) -> None:
        if self.model.sent:
            self.model.lose(pick(self.model.sent, number))

    def _message_comes_again(self, number: int) -> None:
        if self.model.seen_before:
            self.model.deliver(pick(self.model.seen_before, number))

    def _nudges_are_lost(self, number: int) -> None:
        self.model.nudges.are_lost = number % 2 == 0

    def _database_goes(self, _number: int) -> None:
        self.truth.disturbed = True
        self.model.database.is_away = True

    # -- what others do -----------------------------------------------------------------------------------------------

    @rule(kind=st.sampled_from(REPAIRS), number=NUMBER)
    def repair(self, kind: str, number: int) -> None:
        getattr(self, f"_{kind.replace(' ', '_')}")(number)

    def _worker_starts(self, number: int) -> None:
        if dead := [worker for worker in self.model.workers.values() if worker.is_down]:
            self.model.start_worker(pick(dead, number))

    def _worker_thaws(self, number: int) -> None:
        self.model.workers[pick(list(QUEUES), number)].frozen = False

    def _task_wakes(self, number: int) -> None:
        if stalled := [strand for strand in self.model.strands if strand.stalled]:
            pick(stalled, number).stalled = False

    def _a_moment_passes(self, _number: int) -> None:
        self.truth.disturbed = True  # a few of them are as long as a lease
        self.model.let_time_pass(1.0)

    def _time_passes(self, number: int) -> None:
        """Long enough for leases to end, or for a node to be silent."""
        self.truth.disturbed = True
        self.model.let_time_pass(3.0 + number)

    def _reconcile(self, _number: int) -> None:
        self.model.reconcile()

    def _heartbeat(self, number: int) -> None:
        self.model.look_at_host(self.model.workers[f"node.{pick(list(NODES), number)}"])

    def _operator_looks(self, _number: int) -> None:
        if self.truth.needs_operator:
            assert retry_migration(self.model.context, 1) == 1

    def _database_comes_back(self, _number: int) -> None:
        self.model.database.is_away = False

    # -- what must always be ------------------------------------------------------------------------------------------

    def look_at_hosts(self) -> None:
        look_at_hosts(self.model, self.truth)

    @invariant()
    def all_is_well(self) -> None:
        self.look_at_hosts()
        if self.looked_at != (changes := self.model.changes):
            look_at_rows(self.model, self.truth)
            self.looked_at = changes

    def teardown(self) -> None:
        settle(self.model)
        self.all_is_well()
        look_at_end(self.model, self.truth)


@pytest.mark.timeout(0 if RUNS > USUAL_RUNS else 600)
@pytest.mark.parametrize("kind", dict.fromkeys(DISASTERS) if RUNS > USUAL_RUNS else DECIDING)
def test_any_moment_of_the_switch_over(model: Model, beginnings: Beginnings, kind: str) -> None:
    """One disaster at each effect of it: what chance would come upon once in thousands of runs."""
    seen = set()
    for ahead, number in product(SWITCH_OVER, range(2 if RUNS > USUAL_RUNS else 1)):
        machine = type("Disorder", (Disorder,), {"model": model, "beginnings": beginnings})()
        machine.begin(beginning=Phase.HAND_OVER, paused=False, ahead=ahead)
        seen.add(model.world.state())
        machine.disaster(kind=kind, number=number)
        machine.teardown()
    assert {"running", "handed_over"} <= seen, "the commit was not among these moments"


def test_undo_finds_the_monitor_free_that_a_worker_which_died_had_open(model: Model, beginnings: Beginnings) -> None:
    """A kernel closes what a process had open; the model did not always, and the undo was begun again for ever."""
    machine = type("Disorder", (Disorder,), {"model": model, "beginnings": beginnings})()
    machine.begin(beginning=Phase.HAND_OVER, paused=False, ahead=28)
    machine.play(numbers=[0, 0], writes=False)
    machine.disaster(kind="worker dies", number=1)
    machine.teardown()


@pytest.mark.timeout(0 if RUNS > USUAL_RUNS else 600)
@pytest.mark.parametrize("share", range(SHARES))
def test_any_disorder_ends_well(model: Model, beginnings: Beginnings, share: int) -> None:
    del share  # each looks elsewhere by itself
    machine = type("Disorder", (Disorder,), {"model": model, "beginnings": beginnings})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=-(-RUNS // SHARES),
            stateful_step_count=12,
            deadline=None,
            # Each commit is looked at with the same runs; whoever looks for longer looks elsewhere each time.
            derandomize=RUNS == USUAL_RUNS,
            database=None,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
