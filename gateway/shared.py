"""What the routes share."""

from __future__ import annotations

from pikfix.gateway.health import Canary, Systems
from pikfix.gateway.library import Library
from pikfix.gateway.metrics import Metrics
from pikfix.gateway.previews import Previews
from pikfix.gateway.restorer import Restorer
from pikfix.gateway.schema import RestorationView, view
from pikfix.gateway.settings import Settings
from pikfix.gateway.store import Job, Store

PRIVATE = {"Cache-Control": "no-store"}
"""Headers of answers that are somebody's own."""


class Gateway:
    """One gateway; the parts that need a running loop come with it.

    Attributes:
        settings: limits and places.
        store: restorations on disk.
        metrics: what Prometheus may know.
        restorer: the queue.
        canary: the server's health.
        systems: those that are ready.
        previews: pictures for browsers.
        library: the server's references, where they are at hand.
    """

    restorer: Restorer
    canary: Canary
    systems: Systems

    def __init__(
        self, settings: Settings, store: Store, metrics: Metrics, library: Library | None
    ) -> None:
        self.settings = settings
        self.store = store
        self.metrics = metrics
        self.library = library
        self.previews = Previews()

    def view(self, job: Job) -> RestorationView:
        """How a restoration is now."""
        mask = self.store.mask(job) is not None
        return view(job, self.restorer, self.settings.keep_seconds, mask=mask)
