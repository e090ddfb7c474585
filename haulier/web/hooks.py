"""The calls of other programs: Alertmanager delivers alerts.

Its message is that of its webhook receiver, version 4: https://prometheus.io/docs/alerting/latest/configuration/#webhook_config
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Response
from pydantic import AwareDatetime, BaseModel, Field

from haulier.services import alerts
from haulier.services.alerts import Fired
from haulier.web import documents
from haulier.web.access import Around, may_deliver

router = APIRouter(prefix="/hooks", dependencies=[Depends(may_deliver)], tags=["hooks"])


class DeliveredAlert(BaseModel):
    """An alert; of what Alertmanager sends, what is needed here."""

    status: Literal["firing", "resolved"]
    labels: dict[str, str]
    startsAt: AwareDatetime
    fingerprint: Annotated[str, Field(min_length=1, max_length=64)]


class Delivery(BaseModel):
    """A message of Alertmanager."""

    version: Literal["4"]
    alerts: Annotated[list[DeliveredAlert], Field(max_length=1000)]


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
    fired = [_fired(each) for each in delivery.alerts]
    if dry_run:
        response.status_code = HTTPStatus.OK
        return {"alerts": alerts.rehearse(context, fired)}
    return {"alerts": alerts.receive(context, fired)}


def _fired(alert: DeliveredAlert) -> Fired:
    name = alert.labels.get("alertname", "")
    return Fired(name, alert.fingerprint, alert.startsAt, alert.labels, is_resolved=alert.status == "resolved")
