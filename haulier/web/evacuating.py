"""The calls that empty nodes."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, ConfigDict, Field

from haulier.services import evacuations
from haulier.services.evacuation_wishes import Wishes
from haulier.settings import LONGEST_S
from haulier.web import documents
from haulier.web.access import Around, CallerFirst, may_write
from haulier.web.planning import one_of_few
from haulier.web.words import Moment, Text

router = APIRouter(route_class=CallerFirst, dependencies=[Depends(may_write)], tags=["evacuations"])


class EvacuationWish(BaseModel):
    """Which node is to be emptied, and how; as the options of `haulier evacuate`."""

    model_config = ConfigDict(extra="forbid")

    node: Text
    plan: Annotated[bool, Field(strict=True, description="Only say what would be done, and touch nothing.")] = False
    deadline: Annotated[Moment | None, Field(description="By when it must be done.")] = None
    spare: Annotated[bool, Field(strict=True, description="Only if afterwards any one node may fail.")] = False
    hold_s: Annotated[
        float | None, Field(strict=True, ge=0, le=LONGEST_S, description="Bring all back so long after.")
    ] = None


@router.post(
    "/evacuations",
    status_code=HTTPStatus.ACCEPTED,
    response_model=documents.Evacuation | documents.Plan,
    responses={
        HTTPStatus.OK.value: {
            "model": documents.Evacuation | documents.Plan,
            "description": "The plan, or the evacuation that there is already.",
        }
    },
)
def evacuate(context: Around, wish: EvacuationWish, response: Response) -> Any:  # noqa: ANN401 - of the models
    """Begin to empty a node, or go on with the evacuation that it has."""
    wishes = Wishes(spare=wish.spare, deadline=wish.deadline, hold_s=wish.hold_s)
    with one_of_few():
        if wish.plan:
            response.status_code = HTTPStatus.OK
            return evacuations.plan_evacuation(context, wish.node, wishes)
        document = evacuations.evacuate(context, wish.node, wishes)
    response.headers["Location"] = f"/api/v1/evacuations/{document['id']}"
    if document["again"]:
        response.status_code = HTTPStatus.OK
    return document
