import json
import logging

import pytest
import torch

from pikfix.kernels import tiles


def test_tables_cover_every_promised_size():
    for table in tiles.tables():
        for kernel in ("forward", "backward"):
            for channels in (16, 64, 96, 128, 256, 300, 512):
                for width in (1, 64, 100, 256, 512):
                    for size in (2, 4):
                        tile = table.find(kernel, channels, width, size)
                        assert tile.channels >= channels and tile.width >= width
                        assert tile.bytes >= size
                        assert tile.slice & (tile.slice - 1) == tile.chunk & (tile.chunk - 1) == 0


def test_gluon_tiles_are_for_hopper_and_what_the_kernel_takes():
    for table in tiles.tables():
        listed = [tile for tile in table.tiles if tile.kernel == "gluon"]
        assert bool(listed) == (table.capability == 90)
        for tile in listed:
            assert tile.bytes == 2  # warpgroups multiply no float32 exactly
            assert tile.rows == 128  # 64 for each of two warpgroups
            assert tile.chunk >= tile.width and tile.slice >= tile.channels  # it cuts neither
            # The ring of keys and values, and the queries on their way into registers.
            ring = tile.num_stages * tile.columns * (tile.channels + tile.width)
            assert 2 * (ring + tile.rows * tile.channels // 2) <= table.shared_memory


@pytest.mark.parametrize(("channels", "width", "size"), [(513, 64, 2), (64, 513, 2), (64, 64, 8)])
def test_a_size_no_tile_covers_is_refused_by_name(channels, width, size):
    with pytest.raises(ValueError, match=f"C = {channels}, D = {width} and {size}-byte"):
        tiles.tables()[0].find("forward", channels, width, size)


def test_an_unknown_gpu_takes_the_nearest_table_and_says_so_once(caplog):
    tiles._nearest.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert tiles._nearest("Some GPU", 86).capability == 80
        assert tiles._nearest("Some GPU", 86).capability == 80
        assert tiles._nearest("Old GPU", 75).capability == 80
        assert tiles._nearest("NVIDIA H200", 90).gpu == "NVIDIA H200"
    assert [record.message for record in caplog.records] == [
        "no tile table for Some GPU; using the one of NVIDIA A100-SXM4-80GB",
        "no tile table for Old GPU; using the one of NVIDIA A100-SXM4-80GB",
    ]
    tiles._nearest.cache_clear()


def test_reading_a_table_names_a_wrong_field(tmp_path):
    path = tmp_path / "tiles_x.json"
    path.write_text(json.dumps({"tiles": {"forward": [{"block": 1}]}}))
    with pytest.raises(TypeError, match="block"):
        tiles.read_table(path)


def test_padding_to_what_matrix_units_take():
    assert [tiles.padded(n) for n in (1, 16, 17, 64, 100, 512)] == [16, 16, 32, 64, 128, 512]


def test_without_a_gpu_the_newest_table_serves_the_interpreter():
    assert tiles.table_for(torch.device("cpu")).capability == 90
