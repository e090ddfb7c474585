"""Steps that carry share the bandwidth of their nodes: who is told what, and when."""

from __future__ import annotations

import pytest

from haulier.errors import Refused
from haulier.services.bandwidth import divide_anew, give_back, take_share
from haulier.services.claims import Claim
from haulier.services.limits import LimitChange, set_limits
from models import BandwidthShare, Gate, LimitScope, Phase, Step, StepState
from tests.unit.services.world import SOURCE, TARGET, World

MIB = 1 << 20


def allow(world: World, number: int | None, scope: LimitScope = LimitScope.OUT, *nodes: str) -> None:
    set_limits(world.context, [LimitChange(scope, nodes or (SOURCE,), number, Gate.BANDWIDTH)])


def mirroring(world: World, name: str) -> Claim:
    """A migration of this VM has come to its mirrors, which a worker has just taken."""
    if name != "web":
        world.add_vm(name)
    world.sent.clear()
    world.file(name)
    return world.go(Phase.MIRROR_DISKS)


def ask(world: World, held: Claim, using: int | None) -> int | None:
    return take_share(world.context, held, using=using)


def rows(world: World) -> int:
    with world.context.database.read() as session:
        return session.query(BandwidthShare).count()


def test_without_a_budget_there_is_no_limit_and_no_row(world: World) -> None:
    assert ask(world, mirroring(world, "web"), 0) is None
    assert rows(world) == 0


def test_first_gets_all_and_the_second_what_the_first_has_given(world: World) -> None:
    allow(world, 10 * MIB)
    first, second = mirroring(world, "web"), mirroring(world, "db")
    assert ask(world, first, 0) == 10 * MIB
    assert ask(world, second, 0) == 0, "the first may be using all of it"
    assert ask(world, first, 10 * MIB) == 5 * MIB
    assert ask(world, second, 0) == 0, "it has been told, and has not said that its tools have been"
    assert ask(world, first, 5 * MIB) == 5 * MIB
    assert ask(world, second, 0) == 5 * MIB


def test_one_that_was_told_of_more_may_be_using_it(world: World) -> None:
    """Between its worker's question and the tools' obedience somebody else may come."""
    allow(world, 10 * MIB)
    first, second = mirroring(world, "web"), mirroring(world, "db")
    assert ask(world, first, 0) == 10 * MIB
    assert ask(world, second, 0) == 0
    # It says that nothing has been told to its tools yet; it has the answer of before in hand.
    assert ask(world, first, 0) == 5 * MIB
    assert ask(world, second, 0) == 5 * MIB


def test_what_one_gives_back_is_the_others(world: World) -> None:
    allow(world, 10 * MIB)
    first, second = mirroring(world, "web"), mirroring(world, "db")
    ask(world, first, 0)
    ask(world, second, 0)
    ask(world, first, 5 * MIB)
    give_back(world.context, first)
    give_back(world.context, first)
    assert ask(world, second, 0) == 10 * MIB


def test_what_a_dead_worker_had_is_the_others_when_it_has_been_undone(world: World) -> None:
    """Its QEMU goes on, at the speed that it was told last."""
    allow(world, 10 * MIB)
    first, second = mirroring(world, "web"), mirroring(world, "db")
    ask(world, first, 0)
    ask(world, second, 0)
    with world.context.database.write() as session:
        session.get_one(Step, first.step_id).state = StepState.FAILED
    divide_anew(world.context)
    assert ask(world, second, 0) == 0
    with world.context.database.write() as session:
        session.get_one(Step, first.step_id).state = StepState.UNDONE
    divide_anew(world.context)
    assert ask(world, second, 0) == 10 * MIB
    assert rows(world) == 1


def test_one_that_takes_no_new_limit_leaves_something_for_others(world: World) -> None:
    allow(world, 10 * MIB)
    first, second = mirroring(world, "web"), mirroring(world, "db")
    assert take_share(world.context, first, using=0, fixed=True) == 5 * MIB
    assert ask(world, second, 0) == 5 * MIB
    # It is no faster than it was told to be, by a limit of its own.
    assert take_share(world.context, first, using=MIB, fixed=True) == MIB
    assert ask(world, second, 5 * MIB) == 9 * MIB
    # The copy is over.
    assert ask(world, first, 0) == MIB
    assert ask(world, second, 9 * MIB) == 5 * MIB


def test_budget_that_comes_again_knows_that_none_was_there(world: World) -> None:
    allow(world, 4 * MIB)
    first, second = mirroring(world, "web"), mirroring(world, "db")
    assert ask(world, first, 0) == 4 * MIB
    allow(world, None)
    assert ask(world, first, 4 * MIB) is None
    allow(world, 10 * MIB)
    assert ask(world, second, 0) == 0, "the first may be using all that there is"


def test_one_whose_step_is_not_its_own_any_more_gets_nothing_new(world: World) -> None:
    allow(world, 10 * MIB)
    held = mirroring(world, "web")
    with world.context.database.write() as session:
        session.get_one(Step, held.step_id).fence += 1
    assert ask(world, held, 7) == 7
    assert rows(world) == 0


def test_changed_budget_is_divided_at_once(world: World) -> None:
    allow(world, 10 * MIB)
    held = mirroring(world, "web")
    assert ask(world, held, 0) == 10 * MIB
    allow(world, 4 * MIB)
    assert ask(world, held, 10 * MIB) == 4 * MIB
    allow(world, 20 * MIB)
    assert ask(world, held, 4 * MIB) == 20 * MIB
    allow(world, 2 * MIB, LimitScope.PAIR, SOURCE, TARGET)
    assert ask(world, held, 20 * MIB) == 2 * MIB
    allow(world, None, LimitScope.PAIR, SOURCE, TARGET)
    allow(world, None)
    assert ask(world, held, 2 * MIB) is None


def test_budget_that_comes_later_is_for_those_at_work_too(world: World) -> None:
    first = mirroring(world, "web")
    assert ask(world, first, 0) is None
    allow(world, 10 * MIB)
    second = mirroring(world, "db")
    assert ask(world, first, None) == 10 * MIB
    assert ask(world, second, 0) == 0
    assert ask(world, first, 10 * MIB) == 5 * MIB
    assert ask(world, first, 5 * MIB) == 5 * MIB
    assert ask(world, second, 0) == 5 * MIB


def test_settings_are_the_usual_budgets(world: World) -> None:
    world.context.settings.bandwidth_in_bytes_per_s = 3 * MIB
    held = mirroring(world, "web")
    assert ask(world, held, 0) == 3 * MIB
    allow(world, 2 * MIB, LimitScope.IN, TARGET)
    assert ask(world, held, 3 * MIB) == 2 * MIB


@pytest.mark.parametrize("number", [-1, 0, MIB - 1, 1 << 51])
def test_budget_that_nobody_could_share_is_refused(number: int) -> None:
    with pytest.raises(Refused, match="bad_limit"):
        LimitChange(LimitScope.OUT, (SOURCE,), number, Gate.BANDWIDTH)
