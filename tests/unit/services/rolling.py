"""A group that a roll goes through, as time passes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from haulier.clock import now
from haulier.errors import Refused
from haulier.services import groups, roll_view, windows
from haulier.services.rolls import RollWishes
from models import Evacuation, RollNode, Vm
from tests.unit.services.hall import GIB, beat, play
from tests.unit.services.world import World

HELD = RollWishes(hold_s=1800.0)
RACK = ("alpha", "beta", "gamma")
SMALL = {"swtpm_version": "0.7.1", "libtpms_version": "0.9.2", "ram_bytes": GIB, "ram_free_bytes": GIB}


def open_rack(hall: World) -> World:
    """Alpha, where `web` is, beta and gamma are a group, of which one may be out; delta is not in it."""
    groups.add_group(hall.context, "rack", RACK)
    hall.change(Vm, Vm.name != "web", node_id=4)
    return hall


def shown(world: World, number: int = 1) -> dict[str, Any]:
    return roll_view.show_roll(world.context, number)


def states(world: World) -> list[str]:
    return [each["state"] for each in shown(world)["nodes"]]


def let_holds_end(world: World) -> None:
    """All that is empty was so for long enough."""
    world.change(Evacuation, Evacuation.restore_at.is_not(None), restore_at=now())
    windows.sweep_windows(world.context)
    play(world)


def let_time_pass(world: World) -> None:
    """Who was refused may be asked again."""
    world.change(RollNode, RollNode.asked_at.is_not(None), asked_at=now() - timedelta(seconds=31))
    beat(world)
    play(world)


def refused(act: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        act()
    return caught.value
