"""What Prometheus may know: counts, seconds and places, no name and no picture."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST as MEDIA_TYPE

__all__ = ["MEDIA_TYPE", "Metrics"]

_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The metrics of one gateway."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)  # memory, processor time, open files
        self.requests = Counter(
            "pikfix_web_requests",
            "Answered requests.",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self.restorations = Counter(
            "pikfix_web_restorations",
            "Restorations that ended: done, cancelled, or the code of their error.",
            ("outcome",),
            registry=self._registry,
        )
        self.seconds = Histogram(
            "pikfix_web_restoration_seconds",
            "From the moment a photo is sent to the server to its answer on disk.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.jobs = Gauge(
            "pikfix_web_jobs",
            "Restorations by state; uploads count as uploading.",
            ("state",),
            registry=self._registry,
        )
        self.received = Counter(
            "pikfix_web_received_bytes", "Bytes of request bodies.", registry=self._registry
        )

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)
