"""A token is good for what it was made for, until its end or until it is taken away; nobody can read it anywhere."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from haulier.clock import now
from haulier.errors import Refused
from haulier.services.tokens import add_token, list_tokens, remove_token, scope_of
from models import ApiToken, TokenScope
from tests.unit.services.world import World


def test_token_is_known_again_and_kept_nowhere(world: World) -> None:
    document = add_token(world.context, "grafana", TokenScope.READ)
    token = document["token"]
    assert scope_of(world.context, token) is TokenScope.READ
    assert scope_of(world.context, token + "x") is None
    assert "token" not in list_tokens(world.context)[0]
    with world.context.database.read() as session:
        rows = [*session.execute(text("SELECT * FROM api_token")), *session.execute(text("SELECT * FROM event"))]
    assert rows
    assert token not in str([tuple(row) for row in rows])


def test_token_ends(world: World) -> None:
    token = add_token(world.context, "once", TokenScope.WRITE, expires_at=now() + timedelta(hours=1))["token"]
    assert scope_of(world.context, token) is TokenScope.WRITE
    world.change(ApiToken, expires_at=now() - timedelta(seconds=1))
    assert scope_of(world.context, token) is None


def test_token_is_taken_away(world: World) -> None:
    token = add_token(world.context, "hook", TokenScope.HOOK)["token"]
    remove_token(world.context, "hook")
    assert scope_of(world.context, token) is None
    with pytest.raises(Refused) as refused:
        remove_token(world.context, "hook")
    assert refused.value.code == "unknown_token"


@pytest.mark.parametrize(
    ("name", "expires_at", "code"),
    [
        ("a b", None, "bad_name"),
        ("", None, "bad_name"),
        ("old", datetime(2020, 1, 1, tzinfo=UTC), "token_over"),
        ("there", None, "token_exists"),
    ],
)
def test_what_is_no_token_is_refused(world: World, name: str, expires_at: datetime | None, code: str) -> None:
    add_token(world.context, "there", TokenScope.READ)
    with pytest.raises(Refused) as refused:
        add_token(world.context, name, TokenScope.READ, expires_at=expires_at)
    assert refused.value.code == code
    assert world.count(ApiToken) == 1
