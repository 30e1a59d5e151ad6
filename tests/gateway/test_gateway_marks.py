"""Damage marked by hand in a headless Chromium: what is painted is what the server gets."""

from __future__ import annotations

import io

import numpy as np
import pytest
from page_driver import DONE, TRANSFORMS, choose, is_loaded
from PIL import Image

from pikfix.photos.masks import decode_mask

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect
SIZE = (160, 120)


class Hand:
    """A mouse, a pen or a finger, as the browser itself gets them.

    Places are shares of the picture's width and height.
    """

    def __init__(self, page, kind):
        self.page, self.kind = page, kind
        self.session = page.context.new_cdp_session(page)

    def at(self, place):
        box = self.page.locator("#marks").bounding_box()
        return {
            "x": box["x"] + place[0] * box["width"],
            "y": box["y"] + place[1] * box["height"],
        }

    def send(self, what, *places):
        if what == "down":
            self.page.locator("#stage").scroll_into_view_if_needed()
        if self.kind == "finger":
            name = {"down": "touchStart", "move": "touchMove", "up": "touchEnd"}[what]
            points = [{**self.at(one), "id": n} for n, one in enumerate(places) if what != "up"]
            self.session.send("Input.dispatchTouchEvent", {"type": name, "touchPoints": points})
        else:
            name = {"down": "mousePressed", "move": "mouseMoved", "up": "mouseReleased"}[what]
            more = {"button": "left", "buttons": 1, "clickCount": 1, "pointerType": self.kind}
            self.session.send(
                "Input.dispatchMouseEvent", {"type": name, **self.at(places[0]), **more}
            )

    def draw(self, *places):
        self.send("down", places[0])
        for place in places[1:]:
            self.send("move", place)
        self.send("up", places[-1])


@pytest.fixture
def marking(page, make_png):
    """A photo that is about to be marked."""
    choose(page, ("a.png", make_png(90, SIZE)))
    is_loaded(page)
    page.click("#mark")
    expect(page.locator("#marking")).to_be_visible()
    return page


def sent(page, fake, calls=2):
    """The levels of the mask that the server got."""
    page.click("#send-marks")
    expect(page.locator("#count")).to_have_text(f"({calls} of {calls} done)")
    expect(page.locator("#marking")).to_be_hidden()
    is_loaded(page)
    return levels(fake)


def levels(fake):
    image = Image.open(io.BytesIO(fake.calls[-1][2]["mask"]))
    assert (image.format, image.size) == ("PNG", SIZE)
    return np.asarray(image.convert("L"))


@pytest.mark.parametrize("kind", ["mouse", "pen", "finger"])
def test_what_is_painted_is_sent_with_the_photo_again(marking, fake, make_png, kind):
    Hand(marking, kind).draw((0.25, 0.5), (0.5, 0.5), (0.75, 0.5))
    scale = marking.locator("#marks").bounding_box()["width"] / SIZE[0]
    mask = sent(marking, fake)
    assert fake.calls[-1][0] == make_png(90, SIZE)
    assert set(fake.calls[-1][2]) == {"mask"}
    rows, columns = np.nonzero(mask > 127)
    brush = 24 / scale
    assert (rows.min(), rows.max() + 1) == pytest.approx((60 - brush / 2, 60 + brush / 2), abs=1)
    ends = (40 - brush / 2, 120 + brush / 2)
    assert (columns.min(), columns.max() + 1) == pytest.approx(ends, abs=1)
    assert (mask[60, 40:120] == 255).all()
    assert mask[30].max() == 0
    expect(marking.locator("#report")).to_contain_text("What was marked by hand was filled")


def test_strokes_are_taken_back_one_by_one_or_all(marking, fake):
    hand, send = Hand(marking, "mouse"), marking.locator("#send-marks")
    expect(send).to_be_disabled()
    hand.draw((0.2, 0.2), (0.3, 0.2))
    hand.draw((0.7, 0.8), (0.8, 0.8))
    marking.click("#clear")
    expect(send).to_be_disabled()
    marking.click("#undo")
    marking.keyboard.press("Control+z")
    mask = sent(marking, fake)
    assert mask[24, 40] == 255
    assert mask[60:].max() == 0


def test_escape_takes_back_the_stroke_and_then_ends_it_all(marking, fake):
    hand = Hand(marking, "mouse")
    hand.draw((0.2, 0.2), (0.3, 0.2))
    hand.send("down", (0.7, 0.8))
    hand.send("move", (0.8, 0.8))
    marking.keyboard.press("Escape")
    hand.send("move", (0.9, 0.8))
    hand.send("up", (0.9, 0.8))
    expect(marking.locator("#marking")).to_be_visible()
    marking.keyboard.press("Escape")
    expect(marking.locator("#marking")).to_be_hidden()
    expect(marking.locator("#mark")).to_be_focused()
    assert len(fake.calls) == 1
    marking.click("#mark")
    mask = sent(marking, fake)
    assert mask[24, 40] == 255, "what was painted before is there again"
    assert mask[60:].max() == 0


def test_the_brush_is_wider_where_it_is_set_so_and_finer_where_it_is_zoomed(marking, fake):
    hand = Hand(marking, "mouse")
    scale = marking.locator("#marks").bounding_box()["width"] / SIZE[0]
    marking.focus("#brush")
    marking.keyboard.press("End")
    hand.draw((0.5, 0.25))
    marking.focus("#stage")
    marking.keyboard.press("+")
    marking.focus("#brush")
    marking.keyboard.press("Home")
    for _ in range(10):
        marking.keyboard.press("ArrowRight")
    expect(marking.locator("#brush-value")).to_have_text("24")
    hand.draw((0.5, 0.75))
    mask = sent(marking, fake)
    assert (mask[30] > 127).sum() == pytest.approx(120 / scale, abs=1.5)
    radius = 24 / scale / 1.25 / 2
    assert (mask / 255)[70:].sum() == pytest.approx(np.pi * radius**2, rel=0.1)


def test_a_second_finger_zooms_and_leaves_no_mark(marking, fake):
    hand = Hand(marking, "finger")
    before = marking.evaluate(TRANSFORMS)
    hand.send("down", (0.4, 0.5))
    hand.send("down", (0.4, 0.5), (0.6, 0.5))
    hand.send("move", (0.3, 0.5), (0.7, 0.5))
    hand.send("up")
    assert marking.evaluate(TRANSFORMS) != before
    expect(marking.locator("#send-marks")).to_be_disabled()


def test_the_keys_paint_as_well(marking, fake):
    scale = marking.locator("#marks").bounding_box()["width"] / SIZE[0]
    expect(marking.locator("#stage")).to_be_focused()
    for key in ("ArrowUp", " ", *["ArrowRight"] * 5, " ", *["ArrowDown"] * 9):
        marking.keyboard.press(key)
    mask = sent(marking, fake)
    rows, columns = np.nonzero(mask > 127)
    assert (rows.min() + rows.max() + 1) / 2 == pytest.approx(60 - 8 / scale, abs=1)
    assert columns.max() + 1 - columns.min() == pytest.approx((40 + 24) / scale, abs=1.5)


def test_a_mask_is_there_to_be_corrected_and_stays_with_the_photo(marking, fake):
    Hand(marking, "mouse").draw((0.2, 0.2), (0.4, 0.2))
    first = sent(marking, fake)
    marking.reload()
    marking.wait_for_selector(DONE)
    is_loaded(marking)
    marking.click("#otherwise summary")
    marking.click("#redo")
    expect(marking.locator("#count")).to_have_text("(3 of 3 done)")
    assert (levels(fake) == first).all()
    is_loaded(marking)
    marking.click("#mark")
    Hand(marking, "mouse").draw((0.6, 0.8), (0.8, 0.8))
    both = sent(marking, fake, 4)
    assert abs(both[:50].astype(int) - first[:50]).max() <= 16
    assert both[96, 112] == 255
    marking.click("#mark")
    marking.click("#clear")
    marking.get_by_role("button", name="Restore without marks").click()
    expect(marking.locator("#count")).to_have_text("(5 of 5 done)")
    assert fake.calls[-1][2] == {}


def test_another_photo_ends_the_marking_of_the_first(marking, fake, make_png):
    Hand(marking, "mouse").draw((0.2, 0.2))
    choose(marking, ("b.png", make_png(20, SIZE)))
    expect(marking.locator("#count")).to_have_text("(2 of 2 done)")
    is_loaded(marking)
    expect(marking.locator("#marking")).to_be_hidden()
    marking.click("#mark")
    expect(marking.locator("#send-marks")).to_be_disabled()


def test_masks_have_the_shape_that_the_server_takes(page):
    photos = [(160, 120), (6000, 4001), (4001, 6000), (10000, 101), (2049, 1), (2999, 3001)]
    sizes = page.evaluate(
        "async (all) => {const {maskSize} = await import('/painter.js');"
        "return all.map((one) => maskSize(...one));}",
        photos,
    )
    for (width, height), size in zip(photos, sizes, strict=True):
        buffer = io.BytesIO()
        Image.new("L", size, 255).save(buffer, "PNG")
        mask = decode_mask(buffer.getvalue(), (height, width), 10**8)
        assert mask.shape == (height, width)
        assert max(size) <= 2048 or min(width, height) == 1
