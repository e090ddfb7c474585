"""Limits as people write them: a number, or `usual`."""

from __future__ import annotations

import re
from collections.abc import Iterable

from haulier.cli.moments import interval_of
from haulier.definition.values import size_in_bytes
from haulier.errors import Refused
from haulier.planner.labels import Rate
from haulier.services.limits import LimitChange
from models import Gate, LimitScope

USUAL = "usual"


def _read(gate: Gate, word: str) -> int | None:
    """A number of migrations, or bytes per second such as `500M`; None for the usual one."""
    if word == USUAL:
        return None
    shares = gate is Gate.BANDWIDTH
    try:
        return size_in_bytes(word) if shares else int(word)
    except (Refused, ValueError) as error:
        what = "bandwidth" if shares else "limit"
        hint = "Bytes per second, for example 500M" if shares else "A number, 0 to begin none"
        raise Refused("bad_limit", f"{word!r} is no {what}", f"{hint}, or `{USUAL}`.") from error


def read_pairs(words: Iterable[str], gate: Gate = Gate.PREPARE) -> list[LimitChange]:
    """Limits of pairs, of words such as `alpha:beta=2`. Raises Refused for other words."""
    found, example = [], "100M" if gate is Gate.BANDWIDTH else "2"
    for word in words:
        nodes, equals, limit = word.partition("=")
        source, colon, target = nodes.partition(":")
        if not (equals and colon and source and target) or ":" in target or source == target:
            raise Refused("bad_limit", f"{word!r} names no pair and limit", f"For example alpha:beta={example}.")
        found.append(LimitChange(LimitScope.PAIR, (source, target), _read(gate, limit), gate))
    return found


def read_rates(words: Iterable[str]) -> dict[str, Rate | None]:
    """Rates of labels, of words such as `nightly=6/h`, `nightly=1/10m`, `nightly=usual`. Raises Refused for others."""
    found = dict[str, Rate | None]()
    for word in words:
        label, _, rate = word.partition("=")
        match = re.fullmatch(r"([0-9]{1,6})/([0-9]{0,6})([smhd])", rate)
        if label in found:
            raise Refused("bad_rate", f"{label} is given two rates", "One for each label.")
        if not label or not (match or rate == USUAL):
            raise Refused("bad_rate", f"{word!r} names no label and rate", f"For example nightly=6/h, or ={USUAL}.")
        found[label] = Rate(int(match[1]), round(interval_of(f"{match[2] or 1}{match[3]}"))) if match else None
    return found


def read_limits(given: Iterable[tuple[Gate, LimitScope, str | None]], *nodes: str) -> list[LimitChange]:
    """The limits that were given, of the cluster or of one node."""
    return [LimitChange(scope, nodes, _read(gate, word), gate) for gate, scope, word in given if word is not None]
