"""The calls of other programs: Alertmanager delivers alerts.

Its message is that of its webhook receiver, version 4: https://prometheus.io/docs/alerting/latest/configuration/#webhook_config
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, Literal

import structlog
from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, Field, PlainValidator, ValidationError

from haulier.services import alerts
from haulier.services.alerts import Fired
from haulier.web import documents
from haulier.web.access import Around, CallerFirst, may_deliver
from haulier.web.planning import one_of_few
from haulier.web.size_limit import MOST_BYTES
from haulier.web.words import AnyText, Moment

log = structlog.get_logger()
router = APIRouter(route_class=CallerFirst, prefix="/hooks", dependencies=[Depends(may_deliver)], tags=["hooks"])
# The shortest alert that can be read is longer: more of them are in no body.
_LEAST_BYTES = 80


class DeliveredAlert(BaseModel):
    """An alert; of what Alertmanager sends, what is needed here."""

    status: Literal["firing", "resolved"]
    labels: dict[AnyText, AnyText]
    startsAt: Moment
    fingerprint: Annotated[AnyText, Field(min_length=1, max_length=64)]


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """An alert that cannot be read, and why."""

    why: str


def _read_alone(given: object) -> DeliveredAlert | _Unreadable:
    """Each for itself: Alertmanager sends no message again that was refused, and the others must not be lost by one."""
    try:
        return DeliveredAlert.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or part.isidentifier())
        log.warning("alert.unreadable", place=place, why=first["msg"])
        return _Unreadable(f"{place or 'alert'}: {first['msg']}")


_Alert = Annotated[DeliveredAlert | _Unreadable, PlainValidator(_read_alone, json_schema_input_type=DeliveredAlert)]


class Delivery(BaseModel):
    """A message of Alertmanager."""

    version: Literal["4"]
    alerts: Annotated[list[_Alert], Field(max_length=MOST_BYTES // _LEAST_BYTES)]


class Delivered(BaseModel):
    """What becomes of each alert of a message, in its order."""

    alerts: list[documents.Outcome]


@router.post("/alertmanager", status_code=HTTPStatus.ACCEPTED, response_model=Delivered)
def receive(
    context: Around,
    delivery: Delivery,
    response: Response,
    dry_run: Annotated[bool, Query(description="Only say what would be done, and touch nothing.")] = False,
) -> Any:  # noqa: ANN401 - of the model
    """Take alerts: each is written down once, and what its rule says is done by the control worker."""
    fired = [_fired(each) for each in delivery.alerts if isinstance(each, DeliveredAlert)]
    if dry_run:
        response.status_code = HTTPStatus.OK
        with one_of_few():
            outcomes = iter(alerts.rehearse(context, fired))
    else:
        outcomes = iter(alerts.receive(context, fired))
    return {
        "alerts": [_unreadable(each) if isinstance(each, _Unreadable) else next(outcomes) for each in delivery.alerts]
    }


def _fired(alert: DeliveredAlert) -> Fired:
    name = alert.labels.get("alertname", "")
    return Fired(name, alert.fingerprint, alert.startsAt, alert.labels, is_resolved=alert.status == "resolved")


def _unreadable(alert: _Unreadable) -> dict[str, Any]:
    nothing = dict.fromkeys(("alert", "node", "action", "plan"))
    return {"alertname": "", "fingerprint": "", "outcome": "unreadable", "message": alert.why, **nothing}
