"""Receipts: written by many, cut short by what fails, read as the last word about each photo."""

from __future__ import annotations

import hashlib
import json
import os

import pytest

from pikfix.batch.manifest import Manifest
from pikfix.batch.receipts import (
    Ledger,
    ReceiptsError,
    ReceiptWriter,
    agree_on_options,
    read_receipts,
)
from pikfix.batch.verify import verify


def facts(path):
    data = path.read_bytes()
    return {
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "mtime_ns": path.stat().st_mtime_ns,
    }


@pytest.fixture
def batch(tmp_path):
    """A batch of three photos, all restored, and its verification."""

    class Batch:
        scans, out, folder = tmp_path / "in", tmp_path / "out", tmp_path / "out/.receipts"

        def __init__(self):
            self.names = ["a.jpg", "b/c.png", "d.tif"]
            for name in self.names:
                for place, content in ((self.scans, "photo"), (self.out, "result")):
                    (place / name).parent.mkdir(parents=True, exist_ok=True)
                    (place / name).write_text(f"{content} {name}")
            self.write(*self.names)

        def write(self, *names, **changes):
            writer = ReceiptWriter(self.folder, {"part": "0/1"})
            for name in names:
                writer.begin(name)
                receipt = {
                    "status": "restored",
                    "output": name,
                    "input": facts(self.scans / name),
                    "result": facts(self.out / name),
                }
                writer.end(name, {**receipt, **changes})
            writer.close()
            return writer.path

        def verify(self, **options):
            manifest = Manifest(str(self.scans), self.names)
            ledger = read_receipts(self.folder)
            return verify(manifest, self.out, self.folder, ledger, **options)

    return Batch()


def test_a_complete_batch(batch):
    found = batch.verify()
    assert found.complete
    assert found.counts == {"restored": 3}
    assert found.repeated == 0
    assert found.machines == 1


def test_a_photo_without_a_receipt_is_missing(batch):
    batch.names = [*batch.names, "new.jpg"]
    found = batch.verify()
    assert not found.complete
    assert found.missing == ["new.jpg"]


def test_a_photo_whose_work_did_not_end_is_missing(batch):
    batch.names = [*batch.names, "new.jpg"]
    writer = ReceiptWriter(batch.folder, {})
    writer.begin("new.jpg")
    writer.begin("a.jpg")  # once more: until that ends, it is as before
    writer.close()
    assert batch.verify().missing == ["new.jpg"]


@pytest.mark.parametrize("quick", [True, False])
def test_what_has_changed_is_stale(batch, quick):
    (batch.out / "a.jpg").write_text("other")
    (batch.out / "b/c.png").unlink()
    os.utime(batch.scans / "d.tif", (1, 1))
    found = dict(batch.verify(quick=quick).stale)
    assert found.pop("a.jpg") == "the result has changed since"
    assert found.pop("b/c.png") == "the result is not there"
    # Another time of change is no other photo: read, it is seen to be the same.
    assert found == ({"d.tif": "the photo has changed since"} if quick else {})
    (batch.scans / "d.tif").write_text("photo x.tif")
    assert ("d.tif", "the photo has changed since") in batch.verify(quick=quick).stale


def test_a_result_of_the_same_size_is_read(batch):
    (batch.out / "a.jpg").write_text("result A.jpg")
    assert batch.verify(quick=True).complete
    assert batch.verify().stale == [("a.jpg", "the result has changed since")]


def test_foreign_files_and_results_of_photos_that_are_gone(batch):
    (batch.out / "b/other.png").write_text("x")
    (batch.out / "a.jpg.pikfix.json").write_text("{}")
    (batch.out / "gone.jpg.pikfix.json").write_text("{}")
    batch.names = batch.names[:2]
    found = batch.verify()
    assert found.foreign == ["b/other.png", "gone.jpg.pikfix.json"]
    assert found.stale == [("d.tif", "its photo is not there any more")]


def test_failures_are_named_and_leave_a_batch_complete(batch):
    (batch.out / "a.jpg").unlink()
    _fail(batch, "a.jpg", {"type": "InvalidPhotoError", "message": "no picture"})
    found = batch.verify()
    assert found.complete
    assert found.failed == [("a.jpg", "no picture")]
    assert found.counts == {"restored": 2, "failed": 1}
    assert found.repeated == 1


def _fail(batch, name, error):
    writer = ReceiptWriter(batch.folder, {})
    writer.end(name, {"status": "failed", "input": facts(batch.scans / name), "error": error})
    writer.close()


def test_a_line_that_was_cut_short_costs_its_photo_alone(batch):
    path = sorted(batch.folder.glob("*.jsonl"))[0]
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for cut in (1, 20, len(lines[-1]) - 1):
        path.write_bytes(b"".join(lines[:-1]) + lines[-1][:cut])
        found = batch.verify()
        assert found.missing == ["d.tif"]
        assert found.damaged == 1
        # What is written next goes into a file of its own.
        batch.write("d.tif")
        assert batch.verify().complete
        for other in batch.folder.glob("*.jsonl"):
            if other != path:
                other.unlink()
    path.write_bytes(whole + b"[1]\nnull\n{}\n\xff\n7\n")
    assert batch.verify().complete
    assert batch.verify().damaged == 5


def test_the_last_word_counts_whichever_file_it_is_in(batch):
    writers = [ReceiptWriter(batch.folder, {}) for _ in range(2)]
    for writer in writers:
        writer.end("a.jpg", {"status": "failed", "error": {"message": writer.path.name}})
    writers[0].end("a.jpg", {"status": "failed", "error": {"message": "last"}})
    for writer in writers:
        writer.close()
    receipt = read_receipts(batch.folder).receipts["a.jpg"]
    assert (receipt.reason, receipt.ends) == ("last", 4)


def test_names_that_are_no_text_survive(tmp_path):
    name = os.fsdecode(b"\xff\n.jpg")
    writer = ReceiptWriter(tmp_path, {})
    writer.end(name, {"status": "failed"})
    writer.close()
    assert list(read_receipts(tmp_path).receipts) == [name]
    assert writer.path.read_bytes().count(b"\n") == 2


def test_a_full_disk_is_an_error(tmp_path, monkeypatch):
    writer = ReceiptWriter(tmp_path, {})
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: real(handle, data[:5]))
    writer.end("a.jpg", {"status": "failed"})
    assert json.loads(writer.path.read_bytes().splitlines()[1])["photo"] == "a.jpg"

    def full(handle, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        writer.end("b.jpg", {"status": "failed"})


def test_machines_are_counted_once_however_many_processes_they_run():
    ledger = Ledger(spans=[("a", 0, 10), ("a", 5, 20), ("a", 30, 40), ("b", 0, 15)])
    assert ledger.machine_seconds() == 20 + 10 + 15
    assert ledger.wall_seconds() == 30


def test_cost_and_rate(batch):
    found = batch.verify()
    found.machine_s, found.wall_s = 7200.0, 3600.0
    assert found.rate == pytest.approx(3 / 3600)
    # Two hours at 1.50 for three photos.
    assert found.cost_per_thousand(1.5) == pytest.approx(1000.0)


def test_options_are_agreed_on(tmp_path):
    agree_on_options(tmp_path, {"color": True, "format": None})
    agree_on_options(tmp_path, {"color": True, "format": None})
    with pytest.raises(ReceiptsError, match="another choice of format; give the same"):
        agree_on_options(tmp_path, {"color": True, "format": "png"})
    (tmp_path / "batch.json").write_text("[")
    with pytest.raises(ReceiptsError, match="damaged"):
        agree_on_options(tmp_path, {"color": True})
