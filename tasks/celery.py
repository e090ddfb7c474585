"""The Celery app. The list of modules is in the order of the phases: read it as a table of contents."""

from __future__ import annotations

from celery import Celery

from tasks.wake_up import WakeUp

app = Celery(
    "haulier",
    include=[
        "tasks.check",
        "tasks.reserve",
        "tasks.sync_tpm",
        "tasks.copy_cold",
        "tasks.open_target",
        "tasks.mirror_disks",
        "tasks.move_memory",
        "tasks.hand_over",
        "tasks.retire_source",
        "tasks.send_generation",
        "tasks.take_generation",
        "tasks.vm",
        "tasks.replica",
        "tasks.evacuate",
        "tasks.roll",
        "tasks.reconcile",
        "tasks.node_worker",
        "tasks.guardian",
    ],
)

app.config_from_object("tasks.config")
app.steps["consumer"].add(WakeUp)
