"""The calls that read: nodes, VMs, migrations, evacuations."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from haulier.services import evacuation_view, migrations, nodes, vms
from haulier.web import documents
from haulier.web.access import Around, may_read
from haulier.web.words import MOST, Name, Text

router = APIRouter(dependencies=[Depends(may_read)], tags=["reading"])
_Limit = Annotated[int, Query(ge=1, le=1000, description="So many at most.")]
_After = Annotated[Text, Query(description="Only those whose names come after this one: the last of the page before.")]
_Before = Annotated[int | None, Query(ge=1, le=MOST, description="Only older ones: than the last of the page before.")]


@router.get("/nodes", response_model=list[documents.Node])
def list_nodes(context: Around, after: _After = "", limit: _Limit = 1000) -> Any:  # noqa: ANN401 - of the model
    """All nodes by name."""
    return nodes.list_nodes(context, after=after, limit=limit)


@router.get("/nodes/{name}", response_model=documents.Node)
def show_node(context: Around, name: Name) -> Any:  # noqa: ANN401
    """One node."""
    return nodes.show_node(context, name)


@router.get("/vms", response_model=list[documents.Vm])
def list_vms(context: Around, after: _After = "", limit: _Limit = 1000) -> Any:  # noqa: ANN401
    """All VMs by name."""
    return vms.list_vms(context, after=after, limit=limit)


@router.get("/vms/{name}", response_model=documents.Vm)
def show_vm(context: Around, name: Name) -> Any:  # noqa: ANN401
    """One VM."""
    return vms.show_vm(context, name)


@router.get("/migrations", response_model=list[documents.Migration])
def list_migrations(context: Around, before: _Before = None, limit: _Limit = 100) -> Any:  # noqa: ANN401
    """The newest migrations, the newest one first."""
    return migrations.list_migrations(context, before=before, limit=limit)


@router.get("/migrations/{migration_id}", response_model=documents.Migration)
def show_migration(context: Around, migration_id: int) -> Any:  # noqa: ANN401
    """One migration."""
    return migrations.show_migration(context, migration_id)


@router.get("/evacuations", response_model=list[documents.EvacuationHead])
def list_evacuations(context: Around, before: _Before = None, limit: _Limit = 100) -> Any:  # noqa: ANN401
    """The newest evacuations, the newest one first."""
    return evacuation_view.list_evacuations(context, before=before, limit=limit)


@router.get("/evacuations/{evacuation_id}", response_model=documents.Evacuation)
def show_evacuation(context: Around, evacuation_id: int) -> Any:  # noqa: ANN401
    """One evacuation: where its VMs went and why, who stays and why, what it waits for."""
    return evacuation_view.show_evacuation(context, evacuation_id)
