"""When those that wait will begin, by what was measured."""

from __future__ import annotations

from datetime import timedelta

import pytest

from haulier.clock import now
from haulier.services import batches, migrations
from haulier.services.forecast import FIXED_S, GUESS_BYTES_PER_S, measured_rates
from haulier.services.limits import LimitChange, set_limits
from haulier.services.queue import list_queue
from models import LimitScope, Migration
from tests.unit.services.test_batches import submit
from tests.unit.services.world import World

RAM_BYTES, DISK_BYTES = 262152 * 1024, (1 << 30) + (1 << 20) + (4 << 20)
WHOLE = RAM_BYTES + DISK_BYTES


def rates(world: World) -> float:
    with world.context.database.read() as session:
        return measured_rates(world.context, session).seconds(WHOLE, (1, 2))


def done(world: World, name: str, *, seconds: float) -> None:
    """A migration of a VM that is done, and how long it took."""
    world.add_vm(name)
    number = world.file(name)
    moment = now()
    world.change(
        Migration,
        Migration.id == number,
        state="done",
        started_at=moment - timedelta(seconds=seconds),
        finished_at=moment,
    )


def test_guess_until_something_was_measured(world: World) -> None:
    assert rates(world) == pytest.approx(FIXED_S + WHOLE / GUESS_BYTES_PER_S)
    done(world, "db", seconds=FIXED_S + 50)
    done(world, "ci", seconds=FIXED_S + 150)
    assert rates(world) == pytest.approx(FIXED_S + 100)
    assert migrations.explain(world.context, "web", target="beta")["estimate_s"] == pytest.approx(
        FIXED_S + 100, abs=0.1
    )


def test_queue_says_when_each_begins(world: World) -> None:
    done(world, "db", seconds=FIXED_S + 98)
    set_limits(world.context, [LimitChange(LimitScope.CLUSTER, (), 1)])
    world.add_vm("ci")
    document = submit(world, "web", "ci")
    (waiting,) = list_queue(world.context)
    assert waiting["starts_in_s"] == pytest.approx(100, abs=1)
    assert document["eta_s"] == pytest.approx(200, abs=1)
    batches.pause(world.context, 1)
    assert list_queue(world.context)[0]["starts_in_s"] is None
    assert batches.show_batch(world.context, 1)["eta_s"] is None


def test_one_that_takes_longer_is_about_to_end(world: World) -> None:
    set_limits(world.context, [LimitChange(LimitScope.CLUSTER, (), 1)])
    world.add_vm("ci")
    submit(world, "web", "ci")
    world.change(Migration, Migration.id == 1, started_at=now() - timedelta(hours=1))
    assert list_queue(world.context)[0]["starts_in_s"] == 1.0
