"""A guest that dirties its RAM faster than the link carries it stands still for a while, if it may."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.acceptance.guest import RESTLESS, Guest
from tests.acceptance.invariant import assert_all_is_well
from tests.acceptance.stack import Stack


@pytest.fixture
def settings() -> dict[str, str]:
    """A link of 2 MiB/s, on which eight seconds are not enough; the pause begins there, and grows after a minute."""
    return {"HAULIER_MAX_BANDWIDTH_BYTES_PER_S": str(2 << 20), "HAULIER_DOWNTIME_LIMIT_MS": "8000"}


@pytest.mark.timeout(400)
def test_restless_guest_moves_if_it_may_pause(stack: Stack, make_guest: Callable[..., Guest]) -> None:
    guest = make_guest(append=RESTLESS)
    document = stack.haulier("migrate", guest.name, "--to", "beta", "--may-pause", "--wait").done()
    assert (document["state"], guest.row()["node"]) == ("done", "beta")
    assert document["downtime_ms"] > 0
    guest.wait_ticks()
    assert_all_is_well(stack, guest)
