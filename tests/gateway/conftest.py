"""A gateway in a thread, over real sockets, before a client that answers as a test asks it to."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import shutil
import threading
import time

import httpx
import numpy as np
import pytest
from fake_triton import report_of
from PIL import Image

from pikfix.client import InvalidPhotoError, Report, RestoredPhoto
from pikfix.gateway import Settings, create_app
from pikfix.gateway.server import listen, make_server

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def png(value=90, size=(64, 48)):
    """A grey picture's file."""
    buffer = io.BytesIO()
    Image.new("L", size, value).save(buffer, "PNG")
    return buffer.getvalue()


class FakeClient:
    """The asyncio client, as far as the gateway calls it; turns photos upside down in tone.

    Attributes:
        calls: (photo, references, options) of every photo, as they came.
        troubles: errors to raise, one for each call, before anything is answered.
        gate: answers wait for it.
        delay: seconds that an answer takes at least.
        library: the name of a reference that photos without one are coloured after.
        most: photos in flight at a time, at most.
        cancelled: calls that were cancelled.
        canaries: arrays that were sent instead of files.
        systems: those that are ready.
    """

    def __init__(self):
        self.calls, self.troubles, self.cancelled, self.canaries = [], [], 0, 0
        self.gate = threading.Event()
        self.gate.set()
        self.now = self.most = 0
        self.delay = 0.0
        self.library = None
        self.systems = {"pikfix"}

    async def is_ready(self, system="pikfix"):
        return set(system.split("+")) <= self.systems

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        pass

    async def restore(self, photo, references=None, *, mask=None, timeout=None, **options):
        if isinstance(photo, np.ndarray):
            self.canaries += 1
            if self.troubles:
                raise self.troubles.pop(0)
            return None
        options |= {} if mask is None else {"mask": mask}
        self.calls.append((photo, list(references), options))
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            while not self.gate.is_set():
                await asyncio.sleep(0.005)
            await asyncio.sleep(self.delay)
            if self.troubles:
                raise self.troubles.pop(0)
            return self.answer(photo, references, options)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.now -= 1

    def answer(self, photo, references, options):
        try:
            image = Image.open(io.BytesIO(photo)).convert("L")
        except OSError as error:
            raise InvalidPhotoError(
                "not a picture: send a JPEG",
                model="pikfix_photo",
                step="decode_photo",
                code="bad_photo",
                url="10.1.2.3:8001",
            ) from error
        buffer, format = io.BytesIO(), options.get("format") or "png"
        use = {"source": "request", "name": None, "score": None, "share": 1.0}
        uses = [{**use, "share": 1 / len(references)} for _ in references]
        if not uses and self.library:
            uses = [{**use, "source": "library", "name": self.library, "score": 0.6}]
        kept = options.get("keep_color", False)
        if kept or not options.get("color", True):
            uses = []
        image = image.point(lambda level: 255 - level)
        if uses or kept:
            faint = image.point(lambda level: level // 2)
            image = Image.merge("RGB", (image, faint, faint))
        image.save(buffer, format.upper())
        report = report_of(
            *image.size,
            format,
            colorized=bool(uses) or kept,
            kept_colors=kept,
            references=uses,
            mean_confidence=0.61 if uses else None,
        )
        return RestoredPhoto(buffer.getvalue(), Report._from_dict(report))


class Running:
    """A gateway that runs, and a client of HTTP for it."""

    def __init__(self, settings, fake):
        self.settings, self.fake = settings, fake
        self.listener = listen("127.0.0.1", 0)
        self.address = self.listener.getsockname()
        self.url = f"http://127.0.0.1:{self.address[1]}"
        self.server = make_server(create_app(settings, lambda: fake))
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self.server.serve(sockets=[self.listener]))
        )
        self._thread.start()
        self.http = httpx.Client(base_url=self.url, timeout=20, trust_env=False)
        wait_until(lambda: self.server.started)

    def stop(self):
        self.http.close()
        self.server.should_exit = True
        self._thread.join()
        self.listener.close()

    def send(self, photo=None, references=(), *, name="old.png", later=False, **more):
        """Ask for a restoration."""
        files = [("photo", (name, png() if photo is None else photo))]
        files += [("reference", (f"{n}.png", data)) for n, data in enumerate(references)]
        headers = dict(more.pop("headers", {}))
        if later:
            headers["Prefer"] = "respond-async"
        return self.http.post("/v1/restorations", files=files, headers=headers, **more)

    def state(self, number):
        return self.http.get(f"/v1/restorations/{number}").json()

    def finish(self, number):
        """Wait until a restoration has ended and return its state."""
        wait_until(lambda: self.state(number)["state"] in ("done", "failed"))
        return self.state(number)

    def kept(self):
        """Names in the folder of restorations."""
        return sorted(one.name for one in self.settings.folder.iterdir() if one.name != "lock")


def wait_until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition never came true"
        time.sleep(0.01)


@pytest.fixture
def until():
    return wait_until


@pytest.fixture
def make_png():
    return png


@pytest.fixture
def fake():
    return FakeClient()


@pytest.fixture
def latent(fake, monkeypatch):
    """Call it to have latent translation on the server from then on."""
    monkeypatch.setattr("pikfix.gateway.health.SYSTEMS_FRESH_S", 0)
    return lambda: fake.systems.add("latent")


@pytest.fixture
def start(tmp_path, fake):
    """Start a gateway with other settings; it ends with the test."""
    with contextlib.ExitStack() as stack:

        def begin(**changes):
            settings = Settings(**{"folder": tmp_path / "jobs", **changes})
            running = Running(settings, fake)
            stack.callback(running.stop)
            return running

        yield begin
        fake.gate.set()


@pytest.fixture
def gateway(start):
    return start()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        pytest.skip("there is no Chromium")
    # As root, as in containers, Chromium has no sandbox.
    words = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=words)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, gateway):
    """The page, opened; nothing may fail in it, and nothing may be asked of another host."""
    with browser.new_context(viewport={"width": 1100, "height": 800}) as context:
        page = context.new_page()
        page.set_default_timeout(20000)
        page.troubles = []
        page.on("pageerror", lambda error: page.troubles.append(str(error)))
        page.on("console", lambda one: note(page, one))
        page.on("request", lambda one: outside(page, one.url, gateway.url))
        page.goto(gateway.url)
        page.wait_for_selector("body[data-ready]")
        yield page
        assert page.troubles == []


def note(page, message):
    # An answer that is an error is a line of the console, too.
    if message.type in ("error", "warning") and "the server responded with" not in message.text:
        page.troubles.append(message.text)


def outside(page, url, home):
    if not url.startswith((home, f"blob:{home}")):
        page.troubles.append(f"asked for {url}")
