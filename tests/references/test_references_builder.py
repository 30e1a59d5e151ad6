import fcntl
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from odd_files import make_odd_files
from PIL import Image

from pikfix.references import builder
from pikfix.references.builder import build_library
from pikfix.references.errors import LibraryError
from pikfix.references.library import Library
from pikfix.references.pictures import reduce_picture


def names(library):
    return {entry.name for entry in library.manifest.entries}


def test_only_what_changed_is_read_again(pictures, tmp_path, checkpoint, samples, monkeypatch):
    folder = tmp_path / "library"
    seen = []
    first = build_library(
        pictures, folder, backbone=checkpoint, progress=lambda *done: seen.append(done)
    )
    assert (first.usable, first.added, first.kept, first.removed) == (18, 18, 0, 0)
    assert seen[0] == (0, 21)
    assert seen[-1] == (21, 21)
    reasons = {one.name: one.reason for one in first.left_out}
    assert set(reasons) == {"grey.png", "sepia.png", "broken.jpg"}
    assert "is grey" in reasons["grey.png"]
    assert "single tint" in reasons["sepia.png"]
    assert "broken.jpg" in reasons["broken.jpg"]
    assert "deeper/coffee_1.png" in names(Library(folder))

    read = []
    original = builder.read_picture
    monkeypatch.setattr(
        builder, "read_picture", lambda path: read.append(path.name) or original(path)
    )
    manifest = (folder / "library.json").read_bytes()
    again = build_library(pictures, folder)
    assert (again.usable, again.added, again.kept, again.removed) == (18, 0, 18, 0)
    assert again.threshold == first.threshold
    assert read == []
    assert (folder / "library.json").read_bytes() == manifest

    (pictures / "rocket_0.png").unlink()
    Image.fromarray(samples["rocket_0.png"][::-1]).save(pictures / "rocket_1.png")
    Image.fromarray(samples["rocket_0.png"]).save(pictures / "new.png")
    third = build_library(pictures, folder)
    assert sorted(read) == ["new.png", "rocket_1.png"]
    assert (third.usable, third.added, third.kept, third.removed) == (18, 2, 16, 2)
    library = Library(folder)
    assert "new.png" in names(library)
    assert "rocket_0.png" not in names(library)
    (match,) = library.rank(reduce_picture(samples["rocket_0.png"]), 1, copies=True)
    assert match.name == "new.png"
    assert match.score == pytest.approx(1, abs=2e-3)


def test_an_incremental_library_ranks_as_one_built_at_once(
    pictures, tmp_path, checkpoint, samples, monkeypatch
):
    monkeypatch.setattr(builder, "_MAX_SEGMENTS", 2)
    later = sorted(pictures.glob("*_2.png"))
    contents = {path: path.read_bytes() for path in later}
    for path in later:
        path.unlink()
    folder = tmp_path / "library"
    build_library(pictures, folder, backbone=checkpoint)
    for path, content in contents.items():
        path.write_bytes(content)
        build_library(pictures, folder)
    segments = [path for path in folder.iterdir() if path.name.startswith("segment-")]
    library = Library(folder)
    assert len(segments) == len(library.manifest.segments) <= 3
    build_library(pictures, tmp_path / "at_once", backbone=checkpoint)
    for pixels in list(samples.values())[::5]:
        ranked = [
            [(match.name, round(match.score, 5)) for match in one.rank(reduce_picture(pixels), 17)]
            for one in (library, Library(tmp_path / "at_once"))
        ]
        assert ranked[0] == ranked[1]


def test_killed_in_the_middle(pictures, tmp_path, checkpoint, samples):
    """The old library still works, and the next build takes over what the killed one did."""
    folder = tmp_path / "library"
    for name in list(samples)[3:]:
        (pictures / name).rename(tmp_path / name) if (pictures / name).exists() else None
    old = build_library(pictures, folder, backbone=checkpoint)
    for name in list(samples)[3:]:
        if (tmp_path / name).exists():
            (tmp_path / name).rename(pictures / name)
    script = f"""
        import os, signal
        from pathlib import Path
        import torch
        torch.set_num_threads(1)
        from pikfix.references import builder
        builder._BATCH = 4
        def progress(done, total):
            if done >= total - 5:
                os.kill(os.getpid(), signal.SIGKILL)
        builder.build_library(Path({str(pictures)!r}), Path({str(folder)!r}), progress=progress)
    """
    died = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], check=False, cwd=tmp_path
    )
    assert died.returncode == -signal.SIGKILL
    library = Library(folder)
    assert len(library) == old.usable == 4
    assert library.rank(reduce_picture(samples["retina_0.png"]), 1)

    orphans = {path.name for path in folder.glob("segment-*")} - set(library.manifest.segments)
    assert len(orphans) == 1
    # The death may have torn the journal's last line.
    with (folder / orphans.pop() / "journal.jsonl").open("a") as journal:
        journal.write('["retina_2.png", 12')
    finished = build_library(pictures, folder)
    assert finished.usable == 18
    assert 1 <= finished.added <= 5
    assert len(list(folder.glob("segment-*"))) == len(Library(folder).manifest.segments)
    build_library(pictures, tmp_path / "fresh", backbone=checkpoint)
    picture = reduce_picture(samples["chelsea_0.png"])
    got, expected = (
        [(m.name, round(m.score, 5)) for m in Library(one).rank(picture, 17)]
        for one in (folder, tmp_path / "fresh")
    )
    assert got == expected


def test_rows_that_a_dead_build_tore_are_computed_anew(pictures, tmp_path, checkpoint):
    folder = tmp_path / "library"
    build_library(pictures, folder, backbone=checkpoint)
    (folder / "library.json").unlink()
    (segment,) = folder.glob("segment-*")
    maps = np.load(segment / "maps.npy", mmap_mode="r+")
    maps[5] = 0
    maps.flush()
    again = build_library(pictures, folder, backbone=checkpoint)
    assert (again.usable, again.added, again.kept) == (18, 1, 17)


def test_another_backbone_needs_a_rebuild(pictures, tmp_path, checkpoint, other_checkpoint):
    folder = tmp_path / "library"
    build_library(pictures, folder, backbone=checkpoint)
    digest = Library(folder).backbone.digest
    with pytest.raises(LibraryError, match=r"another backbone .* --rebuild"):
        build_library(pictures, folder, backbone=other_checkpoint)
    assert Library(folder).backbone.digest == digest
    rebuilt = build_library(pictures, folder, backbone=other_checkpoint, rebuild=True)
    assert (rebuilt.added, rebuilt.kept) == (18, 0)
    assert Library(folder).backbone.digest != digest
    assert len(list(folder.glob("backbone-*"))) == 1


def test_nothing_to_build_from(tmp_path, pictures, checkpoint):
    def refused(match, source, target=tmp_path / "library", backbone=checkpoint):
        with pytest.raises(LibraryError, match=match) as caught:
            build_library(source, target, backbone=backbone)
        assert "\n" not in str(caught.value)

    empty = tmp_path / "empty"
    empty.mkdir()
    refused("there are no pictures in", empty)
    refused("is not a folder", tmp_path / "nowhere")
    refused("give --backbone", pictures, backbone=None)
    refused("no such file", pictures, backbone=tmp_path / "nowhere.safetensors")
    refused("holds other files", pictures, target=pictures)
    for path in pictures.rglob("*_*.png"):
        path.unlink()
    refused("none of the 3 pictures", pictures)


def test_one_build_at_a_time(pictures, tmp_path, checkpoint):
    folder = tmp_path / "library"
    folder.mkdir()
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(LibraryError, match="another build"):
            build_library(pictures, folder, backbone=checkpoint)
    build_library(pictures, folder, backbone=checkpoint)


def test_a_library_may_lie_among_its_pictures_and_move_with_them(pictures, tmp_path, checkpoint):
    folder = pictures / "library"
    assert build_library(pictures, folder, backbone=checkpoint).usable == 18
    moved = tmp_path / "moved"
    pictures.rename(moved)
    library = Library(moved / "library")
    assert library.pictures == Path(moved).resolve()


def test_what_is_no_file_is_left_out_with_its_reason(pictures, tmp_path, checkpoint):
    folder = tmp_path / "photos"
    shutil.copytree(pictures, folder)
    odd = make_odd_files(folder)
    built = build_library(folder, tmp_path / "library", backbone=checkpoint)
    assert built.usable == 18
    reasons = {one.name: one.reason for one in built.left_out}
    for name, reason in odd.items():
        assert reasons[name].startswith(f"{folder / name}: {reason}")
