"""The same on PostgreSQL: two VMs cross at the same time, one comes back, a refusal is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.acceptance.conftest import Stacks
from tests.acceptance.guest import Guest
from tests.acceptance.invariant import assert_all_is_well
from tests.acceptance.stack import Stack


@pytest.fixture
def settings(postgres_url: str, stacks: Stacks) -> Iterator[dict[str, str]]:
    yield {"HAULIER_DATABASE_URL": postgres_url}
    # The database goes with the test, so the stack has to go before it.
    stacks.remove()


def test_migrations_on_postgresql(stack: Stack, make_guest: Callable[..., Guest]) -> None:
    guests = [make_guest(), make_guest()]
    assert not (stack.state / "haulier.db").exists()
    commands = [guest.begin_migrate("beta") for guest in guests]
    assert [command.finish().done()["state"] for command in commands] == ["done", "done"]
    guests[0].move("alpha")
    answer = stack.haulier("migrate", guests[0].name, "--to", "alpha")
    assert (answer.status, answer.document["code"]) == (2, "already_there")
    for guest in guests:
        guest.wait_ticks()
    assert_all_is_well(stack, *guests)
