"""`haulier alert …`."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import App, Parameter

from haulier.cli.around import context
from haulier.cli.output import show, table
from haulier.services import alert_rules, alerts
from haulier.services.alert_rules import Answer
from models import AlertAction

app = App(name="alert", help="Say what is done when Alertmanager delivers an alert; show those that came.")
_YES = Parameter(negative=())


@app.command
def add(
    alertname: str,
    action: AlertAction,
    /,
    *,
    label: str = "instance",
    restore: Annotated[bool, _YES] = False,
    dry_run: Annotated[bool, _YES] = False,
) -> None:
    """Have something done with a node when an alert of this name fires.

    Parameters
    ----------
    alertname
        The alert's name, its label alertname.
    action
        evacuate: empty the node; cordon: it takes nothing new, and nothing leaves it.
    label
        The label that names the node, by its name or address; a port is left out.
    restore
        Take it back when the alert is over: bring the VMs back, or let the node take VMs again.
    dry_run
        Only write down that it would be done.
    """
    answer = Answer(action, label, restore=restore, dry_run=dry_run)
    document = alert_rules.add_rule(context(), alertname, answer)
    show(document, f"alert {alertname}: {_does(document)}")


def _does(document: dict[str, Any]) -> str:
    back = ", and back when it is over" if document["restore"] else ""
    dry = " (only said: dry run)" if document["dry_run"] else ""
    return f"{document['action']} the node that {document['label']} names{back}{dry}"


@app.command(name="rules")
def rules_() -> None:
    """What is done for which alert."""
    documents = alert_rules.list_rules(context())
    rows = [{**each, "does": _does(each)} for each in documents]
    show(documents, table(rows, {"alert": "alertname", "what is done": "does"}))


@app.command
def remove(alertname: str, /) -> None:
    """Have nothing done any more for an alert; what came before is done still."""
    show(alert_rules.remove_rule(context(), alertname), f"removed the rule for alert {alertname}")


@app.command
def forget(alert_id: int, /) -> None:
    """Do as if an alert's end had come, because it will not come: its node is given back if its rule says so."""
    document = alerts.forget(context(), alert_id)
    show(document, f"alert {alert_id} ({document['alertname']}) is over")


@app.command(name="list")
def list_() -> None:
    """The newest alerts that came and had a rule."""
    documents = alerts.list_alerts(context())
    rows = [{**each, "why": each["problem"]["message"] if each["problem"] else ""} for each in documents]
    columns = {
        "id": "id", "alert": "alertname", "node": "node", "action": "action", "state": "state",
        "evacuation": "evacuation", "times": "received", "came": "created_at", "why": "why",
    }  # fmt: skip
    show(documents, table(rows, columns))
