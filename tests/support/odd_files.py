"""What a folder of photos may hold besides photos: names of pictures, and no files to read."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def make_odd_files(folder: Path) -> dict[str, str]:
    """Fill a folder; file name -> how the reason for leaving it out begins."""
    folder.mkdir(parents=True, exist_ok=True)
    os.mkfifo(folder / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as listener:
        # An address holds about 100 characters, which temporary folders exceed.
        here = Path.cwd()
        os.chdir(folder)
        try:
            listener.bind("socket.png")
        finally:
            os.chdir(here)
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    (folder / "round.tif").symlink_to(folder / "round.tif")
    (folder / "device.png").symlink_to("/dev/zero")
    with (folder / "huge.png").open("wb") as file:
        file.truncate(1 << 40)
    with (folder / "sparse.jpg").open("wb") as file:
        file.truncate(1 << 30)
    return {
        "pipe.jpg": "a named pipe, not a file with a picture",
        "socket.png": "a socket, not a file with a picture",
        "gone.jpg": f"a link to {folder / 'nowhere.jpg'}, which does not exist",
        "round.tif": "Too many levels of symbolic links",
        "device.png": "a device, not a file with a picture",
        "huge.png": "larger than 2 GiB",
        "sparse.jpg": "it begins with zeros alone, as no picture does",
    }
