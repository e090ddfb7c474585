"""What the model test has found, each by the shortest way that leads there."""

from __future__ import annotations

import pytest

from haulier.fakes.qemu import FakeQemu, StreamState
from models import Phase
from tests.model.invariants import Truth, look_at_end
from tests.model.world import Beginnings, Model, settle
from tests.unit.services.world import SOURCE, TARGET

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def until(model: Model, query: str) -> None:
    """In good order, effect by effect, until there is an answer to a question about the rows."""
    while not model.ask(query):
        go_on(model)


def go_on(model: Model) -> None:
    """One effect in good order, or a little time where nothing is to be done."""
    if model.deliverable:
        model.deliver(model.deliverable[0])
    moves = [*model.effects(), *model.pair.moves()]
    moves[0].make() if moves else model.let_time_pass(0.1)


def test_guest_that_died_on_its_new_host_leaves_no_note_that_it_was_given(model: Model, beginnings: Beginnings) -> None:
    """The next QEMU there would be taken for one that has the guest before it was let run."""
    model.restore(beginnings[Phase.HAND_OVER, False])
    until(model, "SELECT id FROM migration WHERE state = 'handed_over'")
    model.kill_processes(TARGET, FakeQemu)
    settle(model)
    look_at_end(model, Truth(guest_killed=True))


def test_target_that_died_while_it_waited_for_the_source_does_not_take_the_guest(
    model: Model, beginnings: Beginnings
) -> None:
    """It has loaded all of it, and the source, which has too, can still let the guest run."""
    model.restore(beginnings[Phase.HAND_OVER, False])
    until(model, "SELECT id FROM step WHERE phase = 'move_memory' AND notes LIKE '%was_running%'")
    model.kill_processes(TARGET, FakeQemu)
    settle(model)
    look_at_end(model, Truth())


def test_no_reservation_in_the_ledger_outlives_a_worker_that_died_right_after_it(
    model: Model, beginnings: Beginnings
) -> None:
    """An undo gives back what an allocation's row names; a reservation that was before it was found by nobody."""
    model.restore(beginnings[Phase.RESERVE, False])
    until(model, "SELECT id FROM tpm_ledger WHERE role = 'reserved'")
    model.kill_worker(model.workers[f"node.{TARGET}"])
    settle(model)
    look_at_end(model, Truth())


@pytest.mark.parametrize("effects", range(12))
def test_database_that_is_away_for_a_moment_of_the_pause_ends_nothing(
    model: Model, beginnings: Beginnings, effects: int
) -> None:
    """The source's note or the target's commit failed, and so did what should have written that down: the guest stood
    still until the lease was over.
    """
    model.restore(beginnings[Phase.HAND_OVER, False])
    (source,) = model.pair.running(FakeQemu, SOURCE)
    while source.stream is not StreamState.COMPLETED:
        go_on(model)
    for _ in range(effects):
        go_on(model)
    model.database.is_away, away_until = True, model.clock.time + 5.0
    while model.clock.time < away_until:
        go_on(model)
    model.database.is_away = False
    until(model, "SELECT id FROM migration WHERE state <> 'running'")
    assert model.clock.time < away_until + 2.0
    assert model.ask("SELECT state FROM migration") in ([("handed_over",)], [("done",)])
    settle(model)
    look_at_end(model, Truth())
