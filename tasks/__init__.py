"""The Celery app: `celery -A tasks worker`. Celery carries the work; the database is the truth."""

from tasks.celery import app

__all__ = ["app"]
