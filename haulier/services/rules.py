"""Rules about which VMs are beside each other, and which nodes they may be on."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from haulier.clock import now
from haulier.errors import Refused
from haulier.services.context import Context
from haulier.services.lookup import find_node, find_vm, unknown
from haulier.services.waiting import tell_evacuations
from haulier.settings import NAME
from models import PlacementRule, PlacementRuleNode, PlacementRuleVm, RuleKind

_OF_NODES = (RuleKind.ONLY_ON, RuleKind.NOT_ON)


def add_rule(
    context: Context, name: str, kind: RuleKind, *, vms: Collection[str], nodes: Collection[str] = (), hard: bool = True
) -> dict[str, Any]:
    """Make a rule. Raises Refused for an unknown VM or node, a name that is taken, and a rule that says nothing."""
    if not NAME.fullmatch(name):
        raise Refused("bad_name", f"{name!r} is no name for a rule", "Letters, digits, dot, dash and underscore.")
    _require_sense(kind, vms=set(vms), nodes=set(nodes))
    try:
        with context.unit() as unit:
            if unit.session.scalar(select(PlacementRule.id).where(PlacementRule.name == name)) is not None:
                raise _taken(name)
            rule = PlacementRule(name=name, kind=kind, hard=hard, created_at=now())
            rule.vms = [find_vm(unit.session, vm) for vm in sorted(set(vms))]
            rule.nodes = [find_node(unit.session, node) for node in sorted(set(nodes))]
            unit.session.add(rule)
            unit.note(
                "rule.added", rule=name, rule_kind=kind, vms=sorted(set(vms)), nodes=sorted(set(nodes)), hard=hard
            )
            tell_evacuations(unit)
            return _document(rule)
    except IntegrityError as error:
        if not any(word in str(error.orig) for word in ("uq_placement_rule_name", "placement_rule.name")):
            raise
        raise _taken(name) from error


def _taken(name: str) -> Refused:
    return Refused("rule_exists", f"there is a rule {name} already", f"haulier rule remove {name}")


def _require_sense(kind: RuleKind, *, vms: set[str], nodes: set[str]) -> None:
    if kind in _OF_NODES and not nodes:
        raise Refused("bad_rule", f"a rule {kind} names nodes", "--node NODE, as often as there are.")
    if kind not in _OF_NODES and nodes:
        raise Refused("bad_rule", f"a rule {kind} names VMs only", "Leave --node out.")
    if len(vms) < (1 if kind in _OF_NODES else 2):
        raise Refused("bad_rule", f"a rule {kind} of {len(vms)} VMs says nothing", "Name more.")


def list_rules(context: Context) -> list[dict[str, Any]]:
    """All rules, by name."""
    with context.database.read() as session:
        return [_document(rule) for rule in session.scalars(select(PlacementRule).order_by(PlacementRule.name))]


def show_rule(context: Context, name: str) -> dict[str, Any]:
    """One rule. Raises Refused for an unknown one."""
    with context.database.read() as session:
        return _document(_find(session, name))


def remove_rule(context: Context, name: str) -> dict[str, Any]:
    """Take a rule away. Returns it as it was. Raises Refused for an unknown one."""
    with context.unit() as unit:
        rule = _find(unit.session, name)
        document = _document(rule)
        for table in (PlacementRuleVm, PlacementRuleNode):
            unit.session.execute(delete(table).where(table.rule_id == rule.id))
        unit.session.execute(delete(PlacementRule).where(PlacementRule.id == rule.id))
        unit.note("rule.removed", rule=name)
        tell_evacuations(unit)
        return document


def _find(session: Session, name: str) -> PlacementRule:
    rule = session.scalar(select(PlacementRule).where(PlacementRule.name == name))
    if rule is None:
        there = session.scalars(select(PlacementRule.name)).all()
        raise unknown("rule", name, there, "haulier rule list")
    return rule


def _document(rule: PlacementRule) -> dict[str, Any]:
    return {
        "name": rule.name,
        "kind": rule.kind,
        "hard": rule.hard,
        "vms": [vm.name for vm in rule.vms],
        "nodes": [node.name for node in rule.nodes],
    }
