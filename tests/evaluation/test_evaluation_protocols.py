"""The four protocols with networks whose results are known, and what is reported of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from scipy import ndimage
from skimage import color, data

from pikfix.evaluation.baselines import best_fit
from pikfix.evaluation.choosers import LuminanceChooser
from pikfix.evaluation.errors import EvaluationError
from pikfix.evaluation.evaluator import evaluate
from pikfix.evaluation.metrics import psnr
from pikfix.evaluation.pictures import (
    centre_crop,
    compose,
    find_pictures,
    load_resized,
    sibling,
    split_lab,
)
from pikfix.evaluation.protocol import Measured, Protocol
from pikfix.evaluation.report import table, write_json, write_sheet
from pikfix.evaluation.siblings import SiblingRange
from pikfix.systems.pikfix.networks import PikFix
from pikfix.systems.pikfix.protocols import KINDS, PROTOCOLS


def damage(luminance, rng):
    noise = rng.normal(0, 0.1, luminance.shape).astype(np.float32)
    return np.clip(luminance + noise, 0, 1)


@pytest.fixture(scope="module")
def chooser(references):
    return LuminanceChooser(find_pictures(references))


@pytest.fixture
def run(photos, chooser, model):
    def call(protocol, model=model, **options):
        settings = {"choose": chooser, "degrade": damage, "references": 2, **options}
        files = settings.pop("files", find_pictures(photos))
        return evaluate(model, files, PROTOCOLS[protocol], **settings)

    return call


def test_colorize_without_colour_equals_the_grey_photo(run, colourless):
    result = run("colorize", colourless)
    assert result.means["model"] == result.means["model_one_reference"]
    assert result.means["model"]["psnr"] == pytest.approx(result.means["grey"]["psnr"])
    assert result.means["model"]["colourfulness"] < 0.3
    assert result.means["truth"]["colourfulness"] > 20


def test_grey_figures_against_skimage(run, photos):
    row = next(r for r in run("colorize").photos if r["photo"] == "astronaut.png")
    pixels = np.asarray(Image.open(photos / "astronaut.png").resize((256, 256), 3)) / 255
    lab = color.rgb2lab(pixels)
    lab[..., 1:] = 0
    error = np.mean((color.lab2rgb(lab) - pixels) ** 2)
    assert row["grey"]["psnr"] == pytest.approx(-10 * np.log10(error), abs=0.01)


def test_colorize_gives_the_references_asked_for(run, model):
    result = run("colorize", references=2)
    assert model.reference_counts == [2, 1] * 3
    assert {r["photo"]: len(r["references"]) for r in result.photos}["chelsea.png"] == 2
    assert result.means["model"] != result.means["model_one_reference"]


def test_a_photo_is_never_its_own_reference(run, photos, chooser):
    rows = {r["photo"]: r["references"] for r in run("colorize", references=9).photos}
    assert "copy_of_astronaut.png" not in rows["astronaut.png"]
    assert "copy_of_astronaut.png" in rows["chelsea.png"]
    pool = LuminanceChooser(find_pictures(photos))
    rows = {r["photo"]: r["references"] for r in run("colorize", choose=pool).photos}
    assert all(photo not in names for photo, names in rows.items())


def test_the_chooser_finds_a_copy_first_and_names_what_it_leaves_out(chooser, photos):
    luminance, _ = split_lab(centre_crop(load_resized(photos / "astronaut.png")))
    ranked = chooser(luminance[None], photos / "no such file.png")
    assert ranked[0].name == "copy_of_astronaut.png"
    assert {p.name for p in chooser.skipped} == {"camera.png", "broken.jpg"}


def test_sibling_colours_beat_the_grey_photo(run):
    result = run("sibling")
    assert result.means["model"]["ciede2000"] < result.means["grey"]["ciede2000"]
    assert result.to_dict()["references"] == 1


def test_restore_of_an_identity_equals_the_input(run):
    result = run("restore")
    assert result.means["model"] == result.means["input"]
    assert result.means["model"]["psnr"] == pytest.approx(20.5, abs=1)  # sigma 0.1, clipped
    assert result.means["clean_input"]["psnr"] > 90
    assert "grey" not in result.means


def test_restore_measures_the_restoration(run, model):
    model.restored = lambda luminance: luminance * 0
    result = run("restore")
    assert result.means["model"]["psnr"] < result.means["input"]["psnr"]
    assert result.means["clean_input"]["psnr"] < 20


def test_full_restores_before_it_colours(run, colourless):
    result = run("full", colourless)
    assert result.means["model"]["psnr"] == pytest.approx(result.means["input"]["psnr"])
    clean = run("colorize", colourless)
    assert result.means["model"]["psnr"] < clean.means["model"]["psnr"] - 1


def to_seven_digits(figures):
    """Sums of the same numbers may differ beyond, by the order in which they are added up."""
    return json.loads(json.dumps(figures), parse_float=lambda text: float(f"{float(text):.7g}"))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_seed_decides_and_order_does_not(run, photos, protocol):
    first = run(protocol).to_dict()
    assert to_seven_digits(run(protocol).to_dict()) == to_seven_digits(first)
    last = find_pictures(photos)[-1]
    alone = run(protocol, files=[last]).photos[0]
    assert to_seven_digits(alone) == to_seven_digits(first["photos"][-1])
    other = run(protocol, seed=1).to_dict()
    random = protocol != "colorize"
    assert (other["photos"] != first["photos"]) == random


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_json_table_and_sheet(run, tmp_path, protocol):
    result = run(protocol, sheet_rows=2, checkpoint="weights.safetensors")
    write_json(result, tmp_path / "new" / "figures.json")
    figures = json.loads((tmp_path / "new" / "figures.json").read_text())
    assert figures["protocol"] == protocol
    assert figures["count"] == len(figures["photos"]) == 3
    assert figures["checkpoint"] == "weights.safetensors"
    for system in ("model", "grey", "histogram_match", "input"):
        assert system in figures
        if figures[system] is not None:
            each = [row[system]["psnr"] for row in figures["photos"]]
            assert figures[system]["psnr"] == pytest.approx(np.mean(each))
    assert (figures["input"] is None) == (protocol in ("colorize", "sibling", "kinds"))
    assert (figures["grey"] is None) == (protocol in ("restore", "kinds"))

    console = Console(width=120, record=True)
    console.print(table(result))
    shown = console.export_text()
    assert protocol in shown
    first = figures["model"] or figures["scratches"]
    assert f"{first['psnr']:.2f}" in shown
    if not PROTOCOLS[protocol].shows:
        return

    write_sheet(result, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height > 2 * 192
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_sheet_without_pictures_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match="sheet_rows"):
        write_sheet(run("restore"), tmp_path / "sheet.png")


def test_unreadable_photos_are_named_and_left_out(run, photos, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"\xff\xd8 not a photo")
    result = run("restore", files=[bad, *find_pictures(photos)])
    assert len(result.photos) == 3
    assert result.skipped[0]["photo"] == "bad.jpg"
    assert "bad.jpg" in result.skipped[0]["reason"]
    with pytest.raises(EvaluationError, match=r"no photo could be evaluated.*bad\.jpg"):
        run("restore", files=[bad])


def test_what_cannot_be_run_is_refused(model, photos, tmp_path):
    files = find_pictures(photos)
    with pytest.raises(ValueError, match="needs references"):
        evaluate(model, files, PROTOCOLS["colorize"])
    with pytest.raises(ValueError, match="needs damaged photos"):
        evaluate(model, files, PROTOCOLS["restore"])
    with pytest.raises(EvaluationError, match="no photos in"):
        find_pictures(tmp_path)
    with pytest.raises(EvaluationError, match="not a folder"):
        find_pictures(tmp_path / "missing")
    with pytest.raises(EvaluationError, match="no usable reference"):
        LuminanceChooser([])
    (tmp_path / "only.png").write_bytes(files[0].read_bytes())
    pool = LuminanceChooser([tmp_path / "only.png"])
    with pytest.raises(EvaluationError, match="no reference for"):
        evaluate(model, files[:1], PROTOCOLS["colorize"], choose=pool)


@pytest.mark.parametrize(("width", "height"), [(300, 200), (200, 300), (17, 90), (256, 256)])
def test_photos_of_any_size_become_the_same_crop(tmp_path, width, height):
    Image.fromarray(data.astronaut()).resize((width, height)).save(tmp_path / "a.png")
    photo = load_resized(tmp_path / "a.png")
    assert min(photo.shape[1:]) == 256
    assert centre_crop(photo).shape == (3, 256, 256)


def test_photos_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(data.coffee()).save(tmp_path / "a.jpg", exif=exif)
    photo = load_resized(tmp_path / "a.jpg")
    assert photo.shape[1] > photo.shape[2]


def test_compose_and_split_invert_each_other(photos):
    truth = centre_crop(load_resized(photos / "coffee.png"))
    luminance, ab = split_lab(truth)
    assert psnr(compose(luminance, ab), truth) > 70
    small = torch.nn.functional.avg_pool2d(ab, 2)
    assert psnr(compose(luminance, small), truth) > 30


def test_a_sibling_without_freedom_is_the_crop(photos):
    photo = centre_crop(load_resized(photos / "coffee.png"))
    still = SiblingRange(rotation=0, shear=0, scale=0, shift=0, hue=0, saturation=0, contrast=0)
    same = sibling(photo, np.random.default_rng(0), still, crop=(1.0, 1.0))
    assert psnr(same, photo) > 70


def test_a_sibling_has_the_photos_colours_elsewhere(photos):
    photo = load_resized(photos / "chelsea.png")
    other = sibling(photo, np.random.default_rng(0))
    assert other.shape == (3, 256, 256)
    assert psnr(other, centre_crop(photo)) < 30
    difference = split_lab(other)[1].mean((1, 2)) - split_lab(photo)[1].mean((1, 2))
    assert difference.abs().max() * 110 < 10


def test_the_real_network(run, photos, smallest_config):
    torch.manual_seed(0)
    network = PikFix(smallest_config).eval()
    for weights in network.colorization.parameters():  # its output starts at zero
        torch.nn.init.normal_(weights, std=0.1)
    result = run("full", network, files=find_pictures(photos)[:1], references=2)
    assert 3 < result.means["model"]["psnr"] < 60
    assert result.means["model"] != result.means["grey"]


class Brightness(Protocol):
    """A protocol that the product does not know, of a model that it does not know either."""

    name = "brightness"
    summary = "mean of a picture"

    def measure(self, model, photo, rng):
        truth = centre_crop(photo.rgb)
        pictures = {"model": model(truth), "input": truth}
        figures = {name: {"psnr": psnr(one, truth)} for name, one in pictures.items()}
        return Measured(figures, pictures, [f"{rng.random():.6f}"])


def test_a_protocol_of_another_kind_is_measured_and_reported(photos, tmp_path):
    result = evaluate(lambda rgb: rgb + 0.1, find_pictures(photos), Brightness, sheet_rows=1)
    assert result.means["model"]["psnr"] == pytest.approx(20, abs=1e-4)
    assert result.means["input"]["psnr"] == 100
    assert len({row["references"][0] for row in result.photos}) == 3  # a stream for each photo
    assert result.to_dict()["protocol"] == "brightness"
    write_sheet(result, tmp_path / "sheet.png")
    console = Console(width=120, record=True)
    console.print(table(result))
    assert "brightness: 3 photos" in console.export_text()


def test_kinds_of_an_identity_gain_nothing(run):
    result = run("kinds")
    assert set(result.means) == set(KINDS)
    assert result.means["none"]["psnr"] > 90
    for kind in set(KINDS) - {"none"}:
        figures = result.means[kind]
        assert figures["gain"] == pytest.approx(0, abs=0.01), kind
        assert figures["psnr"] == pytest.approx(figures["before"], abs=0.01)
        assert figures["best_gain"] > 0


def test_kinds_shows_who_does_harm(run, model):
    model.restored = lambda luminance: luminance + 0.1
    result = run("kinds")
    assert result.means["none"]["psnr"] == pytest.approx(26, abs=0.5)
    assert result.means["scratches"]["gain"] < -5


def test_the_best_fit_takes_a_curve_and_a_blur_away():
    truth = np.asarray(Image.fromarray(data.camera()).resize((128, 128)), np.float32) / 255
    curve = 0.2 + 0.5 * truth**2
    assert np.abs(best_fit(curve, truth) - truth).max() < 0.15
    blurred = ndimage.gaussian_filter(truth, 1.0, mode="wrap")
    before = np.square(blurred - truth).mean()
    assert np.square(best_fit(blurred, truth) - truth).mean() < 0.5 * before
