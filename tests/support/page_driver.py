"""What tests of the page have in common: photos go in, and are waited for."""

DONE = "#viewer:not([hidden])"
TRANSFORMS = """() => [...document.querySelectorAll('.plane:has(img)')]
    .map((one) => one.style.transform)"""


def choose(page, *photos, field="#files"):
    files = [{"name": name, "mimeType": "image/png", "buffer": data} for name, data in photos]
    page.set_input_files(field, files)


def is_loaded(page):
    page.wait_for_selector(DONE)
    page.wait_for_function(
        "() => ['before', 'after'].every((id) => document.getElementById(id).naturalWidth > 0)"
    )
