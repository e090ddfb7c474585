"""supervisord, which holds the programs of the local stack: found, started, told what has changed, stopped.

It looks at its programs once a second, and at once when it is asked something. So whoever waits for it keeps asking.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError
from xmlrpc.client import Error as XmlRpcError
from xmlrpc.client import Fault, ServerProxy

from supervisor.xmlrpc import SupervisorTransport

from haulier.errors import StepFailed
from haulier.hypervisor.processes import Daemon, last_words, wait_for_end
from haulier.settings import Settings
from haulier.stack.programs import supervisor_config

_STOP_S = 60.0
# One that is just ending breaks off anywhere.
_NO_ANSWER = (OSError, HTTPException, XmlRpcError, ExpatError)


def find_supervisor(settings: Settings) -> Any:  # noqa: ANN401 - an XML-RPC proxy has the methods of its server
    """The running supervisor, or None."""
    socket = settings.sockets / "supervisor.sock"
    if not socket.exists():
        return None
    transport = SupervisorTransport(None, None, f"unix://{socket}")
    supervisor = ServerProxy("http://localhost", transport=transport).supervisor
    if _answers(supervisor):
        return supervisor
    transport.close()
    return None


def _answers(supervisor: Any) -> bool:  # noqa: ANN401
    try:
        supervisor.getState()
    except _NO_ANSWER:
        return False
    return True


def _ask(supervisor: Any) -> bool:  # noqa: ANN401
    """Have it look at its programs. It is never enough: what is waited for is its end."""
    _answers(supervisor)
    return False


def run_programs(settings: Settings, nodes: Sequence[str]) -> None:
    """Have the stack's programs run for these nodes. What runs already is left as it is.

    Returns before they are ready. Raises StepFailed with the end of its log when supervisord does not start.
    """
    config = settings.state / "supervisord.conf"
    config.write_text(supervisor_config(settings, nodes, with_broker=not settings.broker_url))
    supervisor = find_supervisor(settings)
    if supervisor is None:
        _start(settings, config)
        find_supervisor(settings)  # asked, it begins at once
        return
    added, _changed, _removed = supervisor.reloadConfig()[0]
    for name in added:
        supervisor.addProcessGroup(name)


def _start(settings: Settings, config: Path) -> None:
    environment = {
        # This machine's own nodes find each other here, and have no bridge that anybody promised.
        "HAULIER_ADDRESS": "127.0.0.1",
        "HAULIER_NETWORK": "isolated",
        **os.environ,
        "HAULIER_STATE": str(settings.state),
        "HAULIER_DATABASE_URL": settings.database,
        "HAULIER_BROKER_URL": settings.broker,
    }
    environment.pop("HAULIER_NODE", None)
    log = settings.state / "logs" / "supervisord.out"
    with log.open("ab") as output:
        started = subprocess.run(
            [sys.executable, "-m", "supervisor.supervisord", "-c", str(config)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            check=False,
        )
    if started.returncode != 0:
        raise StepFailed("stack_not_started", f"supervisord: {last_words(log)}", f"See {log}.")


def stop_programs(settings: Settings, supervisor: Any) -> None:  # noqa: ANN401
    """End the programs and supervisord itself. Raises StepFailed when it stays."""
    daemon = Daemon(settings.state / "supervisord.pid", "supervisord", settings.state / "logs" / "supervisord.log")
    for process in supervisor.getAllProcessInfo():
        # All at once; left to itself supervisord ends one after the other. The broker is what they still need.
        if process["name"] != "broker" and process["statename"] == "RUNNING":
            with suppress(Fault):
                supervisor.stopProcess(process["name"], False)
    supervisor.shutdown()
    if not wait_for_end(daemon, seconds=_STOP_S, enough=lambda: _ask(supervisor)):
        raise StepFailed("stack_stays", "supervisord does not end", f"See {daemon.log}.")
