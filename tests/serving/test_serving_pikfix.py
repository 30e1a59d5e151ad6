"""The exported networks behind a real tritonserver, called as a stranger would call them."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import outside_photos
import pytest
import skimage.color
import skimage.data
import tifffile
import torch
from imagecodecs import cms_profile
from PIL import Image, ImageDraw, ImageFilter
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from pikfix.cli.main import main
from pikfix.client import InvalidOptionsError, PikFixClient
from pikfix.export import Manifest
from pikfix.export.configs import ServingSettings
from pikfix.photos.in_flight import InFlight
from pikfix.serving.server import RunningServer, start_server
from pikfix.systems.pikfix.networks import PikFix, load_checkpoint

pytestmark = pytest.mark.serving


@pytest.fixture(scope="module")
def server(exported: tuple[Path, Manifest]) -> Iterator[RunningServer]:
    with start_server(exported[0]) as running:
        yield running


@pytest.fixture(scope="module")
def triton(server: RunningServer) -> Iterator[grpc.InferenceServerClient]:
    """NVIDIA's own client: nothing of ours takes part."""
    with grpc.InferenceServerClient(server.grpc_url) as client:
        yield client


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> PikFix:
    return load_checkpoint(checkpoint)


def tensor(name: str, values: np.ndarray) -> grpc.InferInput:
    kind = "BYTES" if values.dtype == object else "FP32"
    made = grpc.InferInput(name, list(values.shape), kind)
    made.set_data_from_numpy(values)
    return made


def files(*data: bytes) -> np.ndarray:
    return np.array([list(data)], dtype=object)


def encoded(picture: Image.Image, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def photo(width: int, height: int) -> Image.Image:
    return Image.fromarray(skimage.data.astronaut()).resize((width, height)).convert("L")


def reference() -> bytes:
    return encoded(Image.fromarray(skimage.data.coffee()))


def test_every_model_is_ready(triton: grpc.InferenceServerClient) -> None:
    index = triton.get_model_repository_index(as_json=True)["models"]
    assert {entry["name"]: entry["state"] for entry in index} == dict.fromkeys(
        [
            *(
                "damage",
                "restore",
                "tone",
                "similarity",
                "colorize",
                "decode_photo",
                "encode_photo",
            ),
            *("pikfix", "pikfix_photo"),
        ],
        "READY",
    )


@pytest.mark.parametrize(
    ("batch", "size", "references", "reference_size"),
    [
        (1, (256, 256), 1, (256, 256)),
        (2, (96, 224), 3, (64, 160)),
        (1, (33, 517), 2, (128, 96)),
        (2, (640, 480), 1, (96, 96)),
    ],
)
def test_tensors_give_what_pytorch_gives(
    triton: grpc.InferenceServerClient,
    model: PikFix,
    batch: int,
    size: tuple[int, int],
    references: int,
    reference_size: tuple[int, int],
) -> None:
    rng = np.random.default_rng(0)
    photo_l = rng.uniform(-1, 1, (batch, 1, *size)).astype(np.float32)
    lab = rng.uniform(-0.8, 0.8, (batch, references, 3, *reference_size)).astype(np.float32)
    answer = triton.infer("pikfix", [tensor("photo_l", photo_l), tensor("reference_lab", lab)])
    with torch.no_grad():
        expected = model(torch.from_numpy(photo_l), torch.from_numpy(lab))
    for name, value in (("restored_l", expected.restored_l), ("ab", expected.ab)):
        np.testing.assert_allclose(answer.as_numpy(name), value.numpy(), atol=1e-3)


def test_what_a_mask_marks_is_filled(server: RunningServer) -> None:
    """A block that no detector could know to be damage: a part of the picture as good as any."""
    sound = np.asarray(photo(120, 90)).copy()
    broken = sound.copy()
    broken[30:40, 50:58] = 255
    mask = np.zeros_like(sound)
    mask[30:40, 50:58] = 255
    options = {"color": False, "format": "png", "strength": 0.0}
    with PikFixClient(server.grpc_url) as client:
        without = client.restore(broken, **options)
        marked = client.restore(broken, mask=mask, **options)
        with pytest.raises(InvalidOptionsError, match="send a mask of the photo's size"):
            client.restore(broken, mask=mask[:, :60])
        with pytest.raises(InvalidOptionsError, match="the mask marks all of the photo"):
            client.restore(broken, mask=np.full_like(mask, 255))
    assert np.array_equal(np.asarray(without.image), broken)
    filled = np.asarray(marked.image).astype(int)
    assert (
        np.abs(filled - sound)[mask > 0].mean()
        < 0.3 * np.abs(broken - sound.astype(int))[mask > 0].mean()
    )
    assert np.array_equal(filled[mask == 0], sound[mask == 0])
    assert marked.report.damaged_share >= round(float((mask > 0).mean()), 4)


@pytest.mark.parametrize("size", [(33, 517), (640, 480), (1600, 1200), (3000, 2000), (1, 1)])
def test_files_come_back_at_their_own_size(
    triton: grpc.InferenceServerClient, size: tuple[int, int]
) -> None:
    data = encoded(photo(*size))
    answer = triton.infer(
        "pikfix_photo", [tensor("photo", files(data)), tensor("reference", files(reference()))]
    )
    picture = Image.open(io.BytesIO(answer.as_numpy("result")[0, 0]))
    picture.load()
    assert picture.size == size
    assert picture.format == "JPEG"
    report = json.loads(answer.as_numpy("report")[0, 0])
    assert report["colorized"] is True
    assert report["result"] == {"width": size[0], "height": size[1], "format": "jpeg"}


def lightness(picture: Image.Image) -> np.ndarray:
    return skimage.color.rgb2lab(np.asarray(picture.convert("RGB")))[..., 0]


def test_colour_never_changes_the_luminance(server: RunningServer) -> None:
    """0.3 of L is the stated bound; see pikfix.photos.color.compose."""
    old = photo(300, 200)
    with PikFixClient(server.grpc_url) as client:
        colour = client.restore(old, reference(), format="png")
        grey = client.restore(old, reference(), color=False, format="png")
    assert grey.image.mode == "L"
    assert colour.image.mode == "RGB"
    chroma = np.ptp(np.asarray(colour.image).astype(int), axis=-1)
    assert chroma.max() > 10
    # Both pictures round the same L to eight bits, each within the bound.
    assert np.abs(lightness(colour.image) - lightness(grey.image)).max() <= 0.6


def test_luminance_of_the_result_is_restored_l(server: RunningServer, model: PikFix) -> None:
    old = photo(256, 128)
    with PikFixClient(server.grpc_url) as client:
        colour = client.restore(old, reference(), format="png")
    grey = np.asarray(old) / 255.0
    photo_l = skimage.color.rgb2lab(np.repeat(grey[..., None], 3, axis=2))[..., 0] / 50 - 1
    with torch.no_grad():
        restored = model.restored(torch.from_numpy(photo_l).float()[None, None])
    expected = (restored[0, 0].numpy() + 1) * 50
    assert np.abs(lightness(colour.image) - expected).max() <= 0.3 + 0.05


def test_the_report_names_each_references_share(server: RunningServer, model: PikFix) -> None:
    old, blank = photo(192, 160), encoded(Image.new("RGB", (192, 160), "red"))
    with PikFixClient(server.grpc_url) as client:
        report = client.restore(old, [reference(), blank]).report
    shares = [one.share for one in report.references]
    assert all(share is not None and 0 <= share <= 1 for share in shares)
    assert sum(share or 0 for share in shares) == pytest.approx(1, abs=2e-4)


def restored_by_command(
    server: RunningServer, folder: Path, picture: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> tuple[np.ndarray, dict[str, Any], str]:
    """The result, the line of --json and stderr of the command on one scan."""
    scan, out, colours = folder / "scan.png", folder / "out.png", folder / "colour.jpg"
    Image.fromarray(picture).save(scan)
    colours.write_bytes(reference())
    words = ["restore", str(scan), "-o", str(out), "--reference", str(colours), "--json"]
    code = main([*words, "--url", server.grpc_url])
    said, err = capsys.readouterr()
    assert code == 0, err
    return np.asarray(Image.open(out)), json.loads(said), err


@pytest.mark.parametrize("degrees", [0, 3])
def test_a_scans_border_comes_back_bit_for_bit(
    server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], degrees: float
) -> None:
    inside = (40 + outside_photos.photo() * 0.6).astype(np.uint8)
    scan, corners = outside_photos.turned_scan(inside, degrees)
    result, line, _ = restored_by_command(server, tmp_path, scan, capsys)
    assert result.shape == (*scan.shape, 3)
    polygon = Image.new("1", scan.shape[::-1])
    ImageDraw.Draw(polygon).polygon(corners, fill=1, outline=1)
    border = ~np.asarray(polygon.filter(ImageFilter.MaxFilter(3)))
    assert border.mean() > 0.3
    np.testing.assert_array_equal(result[border], np.repeat(scan[border][:, None], 3, axis=1))
    # The photo came from the networks, of random weights here, to a rim where it mixes with paper.
    core = np.asarray(polygon.filter(ImageFilter.MinFilter(9)))
    assert (result[core] != scan[core][:, None]).any(axis=1).mean() > 0.9
    assert line["status"] == "restored"
    assert line["report"]["photo"]["rectangle"] is not None
    assert any("has a border, which is left" in one for one in line["report"]["warnings"])


@pytest.mark.parametrize(
    "page",
    [
        outside_photos.text_page(600, 400, 16),
        outside_photos.filled_drawing(),
        skimage.data.text(),
    ],
    ids=["text", "drawing", "photographed page"],
)
def test_a_page_of_text_and_a_drawing_come_back_unchanged_and_it_is_said(
    server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], page: np.ndarray
) -> None:
    result, line, err = restored_by_command(server, tmp_path, page, capsys)
    np.testing.assert_array_equal(result, page)
    assert (line["status"], line["report"]["colorized"]) == ("left", False)
    assert any("left as it is" in one for one in line["report"]["warnings"])
    assert "1 left" in err


def good(triton: grpc.InferenceServerClient) -> None:
    answer = triton.infer("pikfix_photo", [tensor("photo", files(encoded(photo(40, 30))))])
    assert json.loads(answer.as_numpy("report")[0, 0])["colorized"] is False


PHOTO_L = np.zeros((1, 1, 64, 64), np.float32)
LAB = np.zeros((1, 1, 3, 64, 64), np.float32)
NAN = np.full_like(PHOTO_L, np.nan)


@pytest.mark.parametrize(
    ("photo_l", "lab", "says"),
    [
        (NAN, LAB, "bad_tensor"),
        (PHOTO_L, LAB[:, :, :2], "reference_lab"),
        (PHOTO_L[0], LAB, "photo_l"),
        (PHOTO_L, LAB[..., :33], "multiples of 32"),
        (PHOTO_L, np.full_like(LAB, np.inf), "bad_tensor"),
    ],
)
def test_bad_tensors_are_refused_and_the_server_lives(
    triton: grpc.InferenceServerClient, photo_l: np.ndarray, lab: np.ndarray, says: str
) -> None:
    inputs = [tensor("photo_l", photo_l), tensor("reference_lab", lab)]
    with pytest.raises(InferenceServerException) as error:
        triton.infer("pikfix", inputs)
    assert says in error.value.message()
    good(triton)


def test_wrong_type_is_refused(triton: grpc.InferenceServerClient) -> None:
    wrong = grpc.InferInput("photo_l", list(PHOTO_L.shape), "FP16")
    wrong.set_data_from_numpy(PHOTO_L.astype(np.float16))
    with pytest.raises(InferenceServerException, match="photo_l"):
        triton.infer("pikfix", [wrong, tensor("reference_lab", LAB)])
    good(triton)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "bad_photo"),
        (b"dear diary", "bad_photo"),
        (encoded(photo(200, 200))[:900], "bad_photo"),
    ],
)
def test_bad_files_are_refused_and_the_server_lives(
    triton: grpc.InferenceServerClient, data: bytes, says: str
) -> None:
    with pytest.raises(InferenceServerException) as error:
        triton.infer("pikfix_photo", [tensor("photo", files(data))])
    assert "[decode_photo]" in error.value.message()
    assert says in error.value.message()
    assert "\n" not in error.value.message()
    good(triton)


def test_metrics_are_served(server: RunningServer, triton: grpc.InferenceServerClient) -> None:
    import urllib.request

    good(triton)
    with urllib.request.urlopen(server.metrics_url, timeout=10) as response:
        text = response.read().decode()
    counts = [
        float(line.split()[-1])
        for line in text.splitlines()
        if line.startswith('nv_inference_request_success{model="encode_photo"')
    ]
    assert counts
    assert counts[0] >= 1


def test_server_is_healthy_after_all(server: RunningServer) -> None:
    assert server.health().state == "healthy"
    assert server.restarts == 0
    assert server.dead_instances() == []


def test_the_readmes_client_works_as_written(
    server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("old.jpg").write_bytes(encoded(photo(120, 80)))
    Path("colour.jpg").write_bytes(reference())
    assert "localhost:8001" in snippet
    exec(snippet.replace("localhost:8001", server.grpc_url), {})
    assert Image.open("restored.jpg").size == (120, 80)


def test_a_photo_is_refused_while_there_is_no_place_and_waits_for_one(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The places of a running server, taken from outside."""
    data = encoded(photo(64, 48))
    limit = ServingSettings().max_in_flight
    with monkeypatch.context() as patch:
        patch.setattr("os.getppid", lambda: server.server_pid)
        places = InFlight.of_this_server()
    inputs = [tensor("photo", files(data)), tensor("reference", files(reference()))]
    with grpc.InferenceServerClient(server.grpc_url) as client:
        client.infer("pikfix_photo", inputs)  # its place is free again:
        held = places.admit(limit, limit)
        assert len(held) == limit
        with pytest.raises(
            InferenceServerException, match=r"\[decode_photo\] busy: 16 photos"
        ) as no:
            client.infer("pikfix_photo", inputs)
        assert no.value.status() == "StatusCode.UNAVAILABLE"
    with PikFixClient(server.grpc_url) as ours, ThreadPoolExecutor(3) as threads:
        waiting = [threads.submit(ours.restore, data, reference()) for _ in range(3)]
        assert not wait(waiting, timeout=1.0).done
        places.release(held)
        done = [answer.result(timeout=60) for answer in waiting]
    assert len({bytes(result.data) for result in done}) == 1


def test_more_photos_at_once_than_it_works_on_are_all_answered(server: RunningServer) -> None:
    data = encoded(photo(64, 48))
    count = 3 * ServingSettings().max_in_flight
    with PikFixClient(server.grpc_url) as ours, ThreadPoolExecutor(count) as threads:
        done = list(threads.map(lambda _: ours.restore(data, reference()), range(count)))
    assert len({bytes(result.data) for result in done}) == 1


def test_archive_files_come_back_as_they_came(server: RunningServer) -> None:
    """Undamaged photos with nothing asked for: samples, depth and profile; then with colours."""
    deep = skimage.data.camera()[100:196, 100:228].astype(np.uint16) * 257 - 3
    colour = skimage.data.astronaut()[100:196, 100:228].astype(np.uint16) * 255 + 77
    adobe, gamma = cms_profile("adobergb"), cms_profile("gray", gamma=2.2)
    with PikFixClient(server.grpc_url) as client:
        for pixels, icc, wishes in (
            (deep, b"", {"color": False}),
            (deep, gamma, {"color": False}),
            ((deep >> 8).astype(np.uint8), gamma, {"color": False}),
            (colour, adobe, {"keep_color": True}),
        ):
            file = archived(pixels, icc)
            same = client.restore(file, strength=0.0, **wishes)
            with tifffile.TiffFile(io.BytesIO(same.data)) as found:
                page = found.pages.first
                assert np.array_equal(page.asarray(), pixels)
                assert (page.iccprofile or b"") == icc
            assert same.report.digital_source_type is None
            restored = client.restore(file, **wishes)
            with tifffile.TiffFile(io.BytesIO(restored.data)) as found:
                page = found.pages.first
                assert (page.shape, page.dtype) == (pixels.shape, pixels.dtype)
                assert (page.iccprofile or b"") == icc
                assert b"algorithmicallyEnhanced" in page.tags[700].value
            assert restored.report.kept_colors == (pixels.ndim == 3)


def archived(pixels: np.ndarray, icc: bytes) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(
        file,
        pixels,
        photometric="rgb" if pixels.ndim == 3 else "minisblack",
        compression="lzw",
        predictor=True,
        extratags=[(34675, "B", None, icc, True)] if icc else [],
    )
    return file.getvalue()
