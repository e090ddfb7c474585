"""Limits as people write them: a number, or `usual`."""

from __future__ import annotations

from collections.abc import Iterable

from haulier.errors import Refused
from haulier.services.limits import LimitChange
from models import Gate, LimitScope

USUAL = "usual"


def read_limit(word: str) -> int | None:
    """The number of a limit; None for the usual one. Raises Refused for other words."""
    if word == USUAL:
        return None
    try:
        return int(word)
    except ValueError as error:
        raise Refused("bad_limit", f"{word!r} is no limit", f"A number, 0 to begin none, or `{USUAL}`.") from error


def read_pairs(words: Iterable[str]) -> list[LimitChange]:
    """Limits of pairs, of words such as `alpha:beta=2`. Raises Refused for other words."""
    found = []
    for word in words:
        nodes, equals, limit = word.partition("=")
        source, colon, target = nodes.partition(":")
        if not (equals and colon and source and target) or ":" in target or source == target:
            raise Refused(
                "bad_limit", f"{word!r} names no pair and limit", "SOURCE:TARGET=N, for example alpha:beta=2."
            )
        found.append(LimitChange(LimitScope.PAIR, (source, target), read_limit(limit)))
    return found


def read_limits(given: Iterable[tuple[Gate, LimitScope, str | None]], *nodes: str) -> list[LimitChange]:
    """The limits that were given, of the cluster or of one node."""
    return [LimitChange(scope, nodes, read_limit(word), gate) for gate, scope, word in given if word is not None]
