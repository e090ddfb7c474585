"""Celery's settings. Read at first use and not at import, so that a bad HAULIER_* variable is an error of the command
and no traceback.

Messages are acknowledged early and a result is kept nowhere: a task that is lost, doubled or late is found by its row.
Nothing is put off by a countdown, because a broker that forgets would forget that too.
"""

from __future__ import annotations

from haulier.settings import load_settings

_settings = load_settings()

broker_url = _settings.broker
broker_connection_retry_on_startup = True
# A message that is not acknowledged within this time is given to somebody else while the first may still work on it.
broker_transport_options = {"visibility_timeout": 86_400, "socket_timeout": 10.0, "socket_connect_timeout": 5.0}
task_ignore_result = True
task_acks_late = False
worker_prefetch_multiplier = 1
task_serializer = "json"
accept_content = ["json"]
task_default_queue = "control"
task_publish_retry_policy = {"max_retries": 3, "interval_start": 0.05, "interval_step": 0.2, "interval_max": 1.0}
worker_hijack_root_logger = False
beat_schedule = {
    # Expires never: that is a moment, and the clocks of two hosts differ. Those that pile up are done as one.
    "reconcile": {"task": "haulier.reconcile", "schedule": _settings.reconcile_s},
}
beat_scheduler = "tasks.beat:SteadyScheduler"
# Looks at its clock as often: one that is put back while it looks would let it sleep for five minutes.
beat_max_loop_interval = _settings.reconcile_s
