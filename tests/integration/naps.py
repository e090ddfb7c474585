"""A Celery app of its own, with the settings of a worker that count for how it takes messages."""

from __future__ import annotations

import os
import time

import redis
from celery import Celery

from tasks.wake_up import WakeUp

app = Celery("naps", broker=os.environ.get("NAPS_BROKER"))
app.conf.update(worker_prefetch_multiplier=1, task_acks_late=False, task_ignore_result=True)
app.steps["consumer"].add(WakeUp)


@app.task(name="nap")
def nap(seconds: float) -> None:
    """Keep a thread for so long, and say that it is over."""
    time.sleep(seconds)
    redis.Redis.from_url(os.environ["NAPS_BROKER"]).incr("naps")
