"""What evacuations have sent away comes home, as far as it fits, and is waited for where that passes."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from haulier.clock import now
from haulier.definition.batch_file import BatchEntry, BatchFile
from haulier.errors import Refused
from haulier.services import batch_filing, evacuations
from haulier.services.admission import admit
from haulier.services.limits import LimitChange, set_limits
from models import (
    LimitScope,
    Migration,
    Node,
)
from tests.unit.services.hall import GIB, beat, hold, play, show, state_of, where
from tests.unit.services.world import World


def _migrations(world: World) -> list[Migration]:
    with world.context.database.read() as session:
        return list(session.scalars(select(Migration).order_by(Migration.id)))


def test_restore_brings_home_who_is_away_and_nobody_else(hall: World) -> None:
    evacuations.evacuate(hall.context, "alpha")
    play(hall)
    away = where(hall)["mail"]
    target = next(each for each in ("beta", "gamma") if each != away)
    batch_filing.submit(hall.context, BatchFile((BatchEntry(1, "mail", target, None, (), None),)))
    play(hall)
    by_hand = where(hall)["mail"]
    assert by_hand != away
    evacuations.restore(hall.context, "alpha")
    play(hall)
    assert show(hall)["state"] == "restored"
    assert where(hall) == {"web": "alpha", "db": "alpha", "mail": by_hand}
    assert state_of(hall, "alpha") == "online"
    with pytest.raises(Refused) as refused:
        evacuations.restore(hall.context, "alpha")
    assert refused.value.code == "nothing_to_restore"


def test_restore_remembers_across_evacuations(hall: World) -> None:
    """What came from alpha to beta, and left beta when that was emptied, goes home to alpha, and not to beta again."""
    hall.change(Node, Node.name.in_(("gamma", "delta")), state="maintenance")
    evacuations.evacuate(hall.context, "alpha")
    play(hall)
    assert set(where(hall).values()) == {"beta"}
    hall.change(Node, Node.name == "gamma", state="online")
    evacuations.evacuate(hall.context, "beta")
    play(hall)
    assert set(where(hall).values()) == {"gamma"}
    evacuations.restore(hall.context, "alpha")
    play(hall)
    assert set(where(hall).values()) == {"alpha"}
    evacuations.restore(hall.context, "beta")
    play(hall)
    assert set(where(hall).values()) == {"alpha"}
    assert show(hall, 2)["state"] == "restored"


def test_restore_brings_what_fits_and_tells_of_the_rest(hall: World) -> None:
    evacuations.evacuate(hall.context, "alpha")
    play(hall)
    facts = {"swtpm_version": "0.7.1", "libtpms_version": "0.9.2", "ram_bytes": 3 * GIB, "ram_free_bytes": 3 * GIB}
    hall.change(Node, Node.name == "alpha", facts=facts)
    evacuations.restore(hall.context, "alpha")
    play(hall)
    document = show(hall)
    assert document["state"] == "restored"
    assert [each["code"] for each in document["blocked"]] == ["no_ram"]
    assert sorted(where(hall).values()).count("alpha") == 2
    hall.change(Node, Node.name == "alpha", facts=facts | {"ram_bytes": 16 * GIB, "ram_free_bytes": 16 * GIB})
    evacuations.restore(hall.context, "alpha")
    play(hall)
    assert set(where(hall).values()) == {"alpha"}


def test_restore_ends_what_waits_to_leave(hall: World) -> None:
    """Only beta is open, then none is; what waited for it does not leave when it is back."""
    hall.change(Node, Node.name.in_(("gamma", "delta")), state="maintenance")
    hold(hall)
    evacuations.evacuate(hall.context, "alpha")
    hall.change(Node, Node.name == "beta", state="maintenance")
    beat(hall)
    assert show(hall)["state"] == "blocked"
    evacuations.restore(hall.context, "alpha")
    hall.change(Node, Node.name == "beta", state="online")
    set_limits(hall.context, [LimitChange(LimitScope.CLUSTER, (), None)])
    play(hall)
    beat(hall)
    assert show(hall)["state"] == "restored"
    assert set(where(hall).values()) == {"alpha"}
    assert {each.state for each in _migrations(hall)} == {"cancelled"}


def test_what_waits_to_come_home_is_waited_for(hall: World) -> None:
    """The node is silent for a while: it boots."""
    evacuations.evacuate(hall.context, "alpha")
    play(hall)
    hall.silence("alpha")
    assert evacuations.restore(hall.context, "alpha")["state"] == "restoring"
    beat(hall)
    assert {each["code"] for each in show(hall)["blocked"]} == {"node_silent"}
    assert "the worker of node alpha does not run" in show(hall)["waiting_for"]
    hall.change(Node, Node.name == "alpha", heartbeat_at=now())
    beat(hall)
    admit(hall.context)
    hall.silence("alpha")
    beat(hall)
    assert show(hall)["state"] == "restoring"
    hall.change(Node, Node.name == "alpha", heartbeat_at=now())
    beat(hall)
    play(hall)
    assert (show(hall)["state"], set(where(hall).values())) == ("restored", {"alpha"})
