"""Rules are made, shown and taken away; one that says nothing, or something else than it seems to, is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from haulier.errors import Refused
from haulier.services import rules
from models import PlacementRule, PlacementRuleNode, PlacementRuleVm, RuleKind
from tests.unit.services.world import World


def test_rule_is_made_shown_and_removed(world: World) -> None:
    world.add_vm("db")
    made = rules.add_rule(world.context, "pair", RuleKind.APART, vms=["web", "db", "web"], hard=False)
    assert made == {"name": "pair", "kind": "apart", "hard": False, "vms": ["db", "web"], "nodes": []}
    rules.add_rule(world.context, "licence", RuleKind.ONLY_ON, vms=["web"], nodes=["beta"])
    assert [rule["name"] for rule in rules.list_rules(world.context)] == ["licence", "pair"]
    assert rules.show_rule(world.context, "licence")["nodes"] == ["beta"]
    assert rules.remove_rule(world.context, "licence")["vms"] == ["web"]
    rules.remove_rule(world.context, "pair")
    assert [world.count(table) for table in (PlacementRule, PlacementRuleVm, PlacementRuleNode)] == [0, 0, 0]
    assert world.kinds("rule.") == ["added", "added", "removed", "removed"]


@pytest.mark.parametrize(
    ("name", "kind", "vms", "nodes", "code"),
    [
        ("a b", RuleKind.APART, ["web", "db"], [], "bad_name"),
        ("r", RuleKind.APART, ["web"], [], "bad_rule"),
        ("r", RuleKind.TOGETHER, ["web", "web"], [], "bad_rule"),
        ("r", RuleKind.APART, ["web", "db"], ["beta"], "bad_rule"),
        ("r", RuleKind.ONLY_ON, ["web"], [], "bad_rule"),
        ("r", RuleKind.NOT_ON, [], ["beta"], "bad_rule"),
        ("r", RuleKind.APART, ["web", "wob"], [], "unknown_vm"),
        ("r", RuleKind.ONLY_ON, ["web"], ["omega"], "unknown_node"),
    ],
)
def test_rule_that_makes_no_sense_is_refused(
    world: World, name: str, kind: RuleKind, vms: Sequence[str], nodes: Sequence[str], code: str
) -> None:
    world.add_vm("db")
    with pytest.raises(Refused) as refused:
        rules.add_rule(world.context, name, kind, vms=vms, nodes=nodes)
    assert refused.value.code == code
    assert world.count(PlacementRule) == 0


def test_name_is_taken_once_and_unknown_ones_are_told(world: World) -> None:
    world.add_vm("db")
    rules.add_rule(world.context, "pair", RuleKind.APART, vms=["web", "db"])
    acts: tuple[tuple[Callable[[], object], str], ...] = (
        (lambda: rules.add_rule(world.context, "pair", RuleKind.APART, vms=["web", "db"]), "rule_exists"),
        (lambda: rules.show_rule(world.context, "pear"), "unknown_rule"),
        (lambda: rules.remove_rule(world.context, "pear"), "unknown_rule"),
    )
    for act, code in acts:
        with pytest.raises(Refused) as refused:
            act()
        assert refused.value.code == code
    assert refused.value.problem.hint == "Did you mean pair?"
