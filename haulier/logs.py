"""Logs: one JSON object per line on standard error, by structlog. No secret is ever a field of one."""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.typing import Processor


def configure_logs() -> None:
    """Send our own events and those of the libraries through one renderer."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    # The library reports each connection that ends; whoever ended it knows.
    logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)
    logging.getLogger("Monitor").setLevel(logging.CRITICAL)
