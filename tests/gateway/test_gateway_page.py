"""The page in a headless Chromium: photos in, compared, coloured otherwise, saved."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from page_driver import DONE, TRANSFORMS, choose, is_loaded
from PIL import Image

from pikfix.photos import encode_photo

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect

DROP = """([kind, name, text]) => {
    const bytes = Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
    const data = new DataTransfer();
    data.items.add(new File([bytes], name, {type: "image/png"}));
    const more = {bubbles: true, cancelable: true};
    document.body.dispatchEvent(kind === "paste"
        ? new ClipboardEvent("paste", {...more, clipboardData: data})
        : new DragEvent(kind, {...more, dataTransfer: data}));
}"""


def seen(page, share):
    """The colour of the stage at a share of its width, half way down."""
    box = page.locator("#stage").bounding_box()
    shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    place = (int(box["x"] + share * box["width"]), int(box["y"] + 0.35 * box["height"]))
    return np.array(shot.getpixel(place), int)


def save(page):
    with page.expect_download() as waiting:
        page.click("#download")
    download = waiting.value
    return download.suggested_filename, Path(download.path()).read_bytes()


def check_accessibility(page):
    """The rules of WCAG 2.1 A and AA that axe-core knows."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe-core").Axe()
    rules = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}}
    found = axe.run(page, options=rules).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"]) for one in found] == []
    # axe takes a field for labelled that is only inside a label, also of another one.
    nameless = page.evaluate(
        "[...document.querySelectorAll('input, select')]"
        ".filter((one) => one.offsetParent && !one.labels.length).map((one) => one.outerHTML)"
    )
    assert nameless == []


def test_a_photo_is_compared_with_its_result_and_saved(page, gateway, make_png):
    choose(page, ("Großmutter.png", make_png(90, (160, 120))))
    is_loaded(page)
    expect(page.locator("#result-title")).to_have_text("Großmutter.png")
    assert abs(seen(page, 0.25) - 90).max() <= 1
    assert abs(seen(page, 0.75) - (255 - 90)).max() <= 1
    page.focus("#wipe")
    page.keyboard.press("Home")
    assert abs(seen(page, 0.25) - (255 - 90)).max() <= 1
    page.keyboard.press("End")
    assert abs(seen(page, 0.75) - 90).max() <= 1
    name, data = save(page)
    (number,) = gateway.kept()
    assert name == "Großmutter-restored.png"
    assert data == (gateway.settings.folder / number / "result").read_bytes()


def test_zoom_and_pan_move_both_in_step(page, make_png):
    choose(page, ("a.png", make_png(90, (160, 120))))
    is_loaded(page)
    start = page.evaluate(TRANSFORMS)
    page.focus("#stage")
    seen_before = {start[0]}
    for key in ("+", "ArrowLeft", "ArrowDown", "-", "1"):
        page.keyboard.press(key)
        before, after = page.evaluate(TRANSFORMS)
        assert before == after
        assert before not in seen_before, key
        seen_before.add(before)
    expect(page.locator("#zoom")).to_have_text("100 %")
    page.hover("#stage")
    page.mouse.wheel(0, -400)
    before, after = page.evaluate(TRANSFORMS)
    assert before == after
    assert before not in seen_before
    page.click("#fit")
    assert page.evaluate(TRANSFORMS) == start


def test_the_divider_is_dragged(page, make_png):
    choose(page, ("a.png", make_png(90, (160, 120))))
    is_loaded(page)
    box = page.locator("#stage").bounding_box()
    middle, height = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(middle, height)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.2 * box["width"], height, steps=3)
    page.mouse.up()
    assert page.input_value("#wipe") == "20"
    assert abs(seen(page, 0.4) - (255 - 90)).max() <= 1


@pytest.mark.parametrize("format", ["png", "webp"])
def test_fainter_colours_are_seen_at_once_and_saved_as_seen(page, fake, make_png, format):
    fake.library = "harbour.jpg"
    page.click("#options summary")
    page.select_option("#format", format)
    choose(page, ("a.png", make_png(40, (160, 120))))
    is_loaded(page)
    coloured = seen(page, 0.75)
    assert np.ptp(coloured) > 60
    page.focus("#strength")
    for _ in range(60):
        page.keyboard.press("ArrowLeft")
    page.wait_for_selector("#grey:not([hidden])")
    expect(page.locator("#strength-value")).to_have_text("40 %")
    page.mouse.move(0, 0)
    faint = seen(page, 0.75)
    assert 0.3 < np.ptp(faint) / np.ptp(coloured) < 0.5
    _, data = save(page)
    saved = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))[60, 120]
    assert abs(saved - faint).max() <= 2
    expect(page.locator("#report")).to_contain_text("The colours are invented")
    expect(page.locator("#report")).to_contain_text("harbour.jpg")


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_a_photo_is_dropped_or_pasted(page, fake, make_png, kind):
    data = make_png(12)
    page.evaluate(DROP, [kind, "scan.png", base64.b64encode(data).decode()])
    is_loaded(page)
    assert fake.calls[0][0] == data
    expect(page.locator("#result-title")).to_have_text("scan.png")


def test_own_references_and_options_go_with_the_next_photos(page, fake, make_png):
    page.click("#options summary")
    page.check("input[value=own]")
    choose(page, ("red.png", make_png(1)), ("blue.png", make_png(2)), field="#references")
    page.check("#force-photo")
    page.select_option("#format", "jpeg")
    choose(page, ("a.png", make_png(3)))
    is_loaded(page)
    options = {"force_photo": True, "format": "jpeg"}
    assert fake.calls == [(make_png(3), [make_png(1), make_png(2)], options)]


def slide(field, value):
    """Move a slider as a hand does; the page is told of both, the way and its end."""
    field.evaluate(
        """(one, value) => {
            one.value = value;
            const more = {bubbles: true};
            one.dispatchEvent(new Event("input", more));
            one.dispatchEvent(new Event("change", more));
        }""",
        str(value),
    )


def test_strength_and_own_colours_go_with_the_next_photos_and_are_remembered(page, fake, make_png):
    page.click("#options summary")
    options = page.locator("#options")
    slide(options.get_by_label("Strength of the restoration"), 40)
    options.get_by_label("Keep the colours that a photo has").check()
    choose(page, ("a.png", make_png(3)))
    is_loaded(page)
    assert fake.calls[-1][2] == {"strength": 0.4, "keep_color": True}
    page.reload()
    is_loaded(page)
    expect(options).to_have_attribute("open", "")
    choose(page, ("b.png", make_png(4)))
    expect(page.locator("#count")).to_have_text("(2 of 2 done)")
    assert fake.calls[-1] == (make_png(4), [], {"strength": 0.4, "keep_color": True})
    page.check("input[value=none]")
    expect(options.get_by_label("Keep the colours that a photo has")).to_be_disabled()
    slide(options.get_by_label("Strength of the restoration"), 100)
    choose(page, ("c.png", make_png(5)))
    expect(page.locator("#count")).to_have_text("(3 of 3 done)")
    assert fake.calls[-1][2] == {"color": False}


def test_a_photo_is_restored_otherwise_with_what_came_with_it(page, fake, make_png):
    page.click("#options summary")
    page.check("input[value=own]")
    choose(page, ("red.png", make_png(1)), field="#references")
    page.select_option("#format", "png")
    choose(page, ("a.png", make_png(3)))
    is_loaded(page)
    page.click("#otherwise summary")
    otherwise = page.locator("#otherwise")
    slide(otherwise.get_by_label("Strength of the restoration"), 0)
    otherwise.get_by_label("Keep the colours that a photo has").check()
    page.click("#redo")
    expect(page.locator("#count")).to_have_text("(2 of 2 done)")
    more = {"format": "png", "strength": 0, "keep_color": True}
    assert fake.calls[-1] == (make_png(3), [make_png(1)], more)
    expect(page.locator("#report")).to_contain_text("The tones were left as they were")
    expect(page.locator("#report")).to_contain_text("The colours are the photo’s own.")
    expect(page.locator("#report")).not_to_contain_text("invented")
    slide(otherwise.get_by_label("Strength of the restoration"), 100)
    otherwise.get_by_label("Keep the colours that a photo has").uncheck()
    page.click("#redo")
    expect(page.locator("#count")).to_have_text("(3 of 3 done)")
    assert fake.calls[-1] == (make_png(3), [make_png(1)], {"format": "png"})


def test_the_system_is_chosen_where_there_are_several(page, fake, latent, make_png):
    page.click("#options summary")
    system = page.locator("#next-choices select")
    expect(system).to_be_hidden()
    page.click("#options summary")
    latent()
    page.click("#options summary")
    expect(page.locator("#options").get_by_label("Networks")).to_be_visible()
    assert system.locator("option").evaluate_all("all => all.map((one) => one.value)") == [
        "pikfix",
        "latent",
        "latent+pikfix",
    ]
    page.check("input[value=own]")
    choose(page, ("red.png", make_png(1)), field="#references")
    system.select_option("latent+pikfix")
    choose(page, ("a.png", make_png(3)))
    is_loaded(page)
    assert fake.calls[-1] == (make_png(3), [make_png(1)], {"system": "latent+pikfix"})
    system.select_option("latent")
    expect(page.locator("input[value=own]")).to_be_disabled()
    choose(page, ("b.png", make_png(4)))
    expect(page.locator("#count")).to_have_text("(2 of 2 done)")
    assert fake.calls[-1] == (make_png(4), [], {"system": "latent"})
    is_loaded(page)
    page.click("#otherwise summary")
    page.locator("#again-choices select").select_option("pikfix")
    page.click("#redo")
    expect(page.locator("#count")).to_have_text("(3 of 3 done)")
    assert fake.calls[-1] == (make_png(4), [], {})


def test_a_system_that_is_away_for_a_while_stays_chosen(page, fake, latent, make_png):
    latent()
    page.click("#options summary")
    system = page.locator("#next-choices select")
    expect(system).to_be_visible()
    system.select_option("latent+pikfix")
    fake.systems.remove("latent")
    page.reload()
    page.wait_for_selector("body[data-ready]")
    page.click("#options summary")
    expect(page.locator("#force-photo")).to_be_visible()
    expect(system).to_be_hidden()
    page.check("#force-photo")
    choose(page, ("a.png", make_png(3)))
    is_loaded(page)
    assert fake.calls[-1][2] == {"force_photo": True}
    latent()
    page.reload()
    expect(system).to_have_value("latent+pikfix")


def test_a_scan_that_browsers_do_not_read_is_shown_all_the_same(page, fake):
    fake.library = "harbour.jpg"
    pixels = np.full((120, 160), 90, np.uint8)
    page.click("#options summary")
    page.select_option("#format", "tiff")
    choose(page, ("scan.tif", encode_photo(pixels, "tiff")[0]))
    is_loaded(page)
    assert abs(seen(page, 0.25) - 90).max() <= 2
    assert np.ptp(seen(page, 0.75)) > 60
    expect(page.locator("#strength")).to_be_disabled()
    expect(page.locator("#strength-value")).to_contain_text("browsers do not show TIFF")
    name, data = save(page)
    assert (name, Image.open(io.BytesIO(data)).format) == ("scan-restored.tif", "TIFF")


def test_a_text_file_is_told_in_a_sentence(page):
    choose(page, ("notes.txt", b"no picture"))
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("The photo cannot be read")
    expect(alert).to_contain_text("not a picture: send a JPEG")
    page.click("text=Take off the list")
    expect(page.locator("#result")).to_be_hidden()
    expect(page.locator("#queue")).to_be_hidden()


def test_several_photos_wait_in_a_list_with_their_progress(page, fake, gateway, make_png, until):
    fake.gate.clear()
    choose(page, *[(f"{n}.png", make_png(n)) for n in range(4)])
    expect(page.locator(".item")).to_have_count(4)
    expect(page.locator(".item progress:visible")).to_have_count(4)
    expect(page.get_by_text("being restored", exact=True)).to_have_count(2)
    expect(page.get_by_text("waiting, 1 before it")).to_have_count(1)
    fake.gate.set()
    expect(page.locator("#count")).to_have_text("(4 of 4 done)")
    page.get_by_role("button", name="2.png").click()
    is_loaded(page)
    assert abs(seen(page, 0.75) - (255 - 2)).max() <= 1
    page.click("#delete")
    expect(page.locator(".item")).to_have_count(3)
    until(lambda: len(gateway.kept()) == 3)


def test_more_photos_than_a_browser_opens_connections(page, fake, gateway, make_png):
    fake.gate.clear()
    choose(page, *[(f"{n:02}.png", make_png(n)) for n in range(12)])
    expect(page.get_by_text(re.compile("next in line|waiting, . before it"))).to_have_count(10)
    fake.gate.set()
    expect(page.locator("#count")).to_have_text("(12 of 12 done)")


def test_a_full_queue_is_waited_for(browser, start, fake, make_png):
    gateway = start(queue=1)
    fake.gate.clear()
    gateway.send(later=True)
    page = browser.new_page()
    page.goto(gateway.url)
    page.wait_for_selector("body[data-ready]")
    choose(page, ("a.png", make_png(5)))
    expect(page.locator(".state")).to_contain_text(
        "too many restorations are waiting; trying again"
    )
    fake.gate.set()
    page.wait_for_selector(DONE, timeout=30000)
    page.close()


def test_after_a_reload_the_photos_are_there(page, make_png):
    choose(page, ("a.png", make_png(90)))
    is_loaded(page)
    page.reload()
    is_loaded(page)
    expect(page.locator("#result-title")).to_have_text("a.png")


def test_a_token_is_asked_for_once(browser, start, tmp_path, make_png):
    (tmp_path / "tokens").write_text("anna a-token-of-hers-0123\n")
    gateway = start(tokens=tmp_path / "tokens")
    page = browser.new_page()
    page.goto(gateway.url)
    page.wait_for_selector("body[data-ready]")
    choose(page, ("a.png", make_png(5)))
    page.get_by_label("This server lets in who has a token").fill("a-token-of-hers-0123")
    page.click("#ask button")
    is_loaded(page)
    page.close()


def test_another_reference_of_the_library_is_clicked(browser, start, fake, make_png, monkeypatch):
    async def rank(*_):
        return [
            {"name": name, "score": score, "suits": suits, "taken": suits}
            for name, score, suits in (("red.png", 0.7, True), ("blue.png", 0.3, False))
        ]

    async def path_of(_self, name):
        path = gateway.settings.folder / name
        path.write_bytes(make_png(200 if name == "red.png" else 201))
        return path

    methods = {"__init__": lambda *_: None, "rank": rank, "path_of": path_of}
    monkeypatch.setattr("pikfix.gateway.app.Library", type("Library", (), methods))
    gateway = start(library="anywhere")
    fake.library = "red.png"
    page = browser.new_page()
    page.goto(gateway.url)
    page.wait_for_selector("body[data-ready]")
    choose(page, ("a.png", make_png(5)))
    is_loaded(page)
    page.click("#rank")
    expect(page.get_by_role("button", name="red.png, 0.70, used here")).to_have_attribute(
        "aria-pressed", "true"
    )
    page.get_by_role("button", name="blue.png, 0.30, hardly suits").click()
    expect(page.locator("#report")).to_contain_text("blue.png")
    expect(page.get_by_text("restored, after blue.png")).to_be_visible()
    assert fake.calls[-1][0] == make_png(5)
    assert fake.calls[-1][1] == [make_png(201)]
    page.close()


def test_a_phone_shows_everything_in_its_width(page, fake, latent, make_png):
    fake.library = "a-very-long-name-of-a-reference-that-does-not-break-anywhere.jpg"
    page.set_viewport_size({"width": 360, "height": 740})
    latent()
    page.click("#options summary")
    expect(page.locator("#next-choices select")).to_be_visible()
    choose(page, ("a-long-name-" * 8 + ".png", make_png(90, (160, 120))))
    is_loaded(page)
    page.click("#otherwise summary")
    page.click("#mark")
    expect(page.locator("#marking")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    small = page.evaluate(
        "[...document.querySelectorAll('button, .button')].filter((one) => one.offsetHeight)"
        ".map((one) => one.offsetHeight).filter((height) => height < 40)"
    )
    assert small == [], "a finger hits every button"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_rules_of_accessibility_hold_in_every_state(page, fake, latent, make_png, scheme):
    page.emulate_media(color_scheme=scheme)
    fake.library = "harbour.jpg"
    check_accessibility(page)
    page.click("#options summary")
    choose(page, ("a.png", make_png(90)))
    is_loaded(page)
    check_accessibility(page)
    latent()
    page.click("#otherwise summary")
    expect(page.locator("#again-choices select")).to_be_visible()
    page.click("#mark")
    page.click("#stage")
    check_accessibility(page)
    choose(page, ("notes.txt", b"no picture"))
    expect(page.get_by_role("alert")).to_be_visible()
    check_accessibility(page)


def test_everything_is_reached_by_the_keyboard(page, make_png):
    choose(page, ("a.png", make_png(90)))
    is_loaded(page)
    page.evaluate("document.activeElement.blur()")
    reached = []
    for _ in range(22):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("document.activeElement.id || document.activeElement.className")
        )
    for name in (
        "files",
        "item",
        "stage",
        "wipe",
        "in",
        "out",
        "fit",
        "full",
        "download",
        "mark",
        "delete",
    ):
        assert name in reached, reached
