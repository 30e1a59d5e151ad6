"""Processes of a running server, read from /proc: who its children are and how much they hold."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_STUB = "triton_python_b"  # the kernel keeps 15 characters of a process's name
# Words of a stub's command line: path, model file, region, two sizes, parent, location, offset,
# instance name, runtime folder.
_INSTANCE_WORD = 8
# Of /proc/net/tcp: the state of a listening socket, and the inode's place behind the state.
_LISTEN = "0A"
_INODE_FIELD = 5
_EXIT_CODE_FIELD = 49  # the 52nd of /proc/PID/stat, counted from the state


@dataclass(frozen=True)
class Process:
    """One process: its number, its parent's, its name and its state letter."""

    pid: int
    parent: int
    name: str
    state: str


def processes() -> Iterator[Process]:
    """Every process of the system that can be read."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            text = (entry / "stat").read_text()
        except OSError:
            continue  # it ended in between
        name = text[text.index("(") + 1 : text.rindex(")")]
        fields = text[text.rindex(")") + 2 :].split()
        yield Process(int(entry.name), int(fields[1]), name, fields[0])


def children(pid: int) -> list[Process]:
    """Living children of a process."""
    return [p for p in processes() if p.parent == pid and p.state != "Z"]


def descendants(pid: int) -> list[Process]:
    """Living children of a process, their children, and so on."""
    everyone = [p for p in processes() if p.state != "Z"]
    found: list[Process] = []
    parents = {pid}
    while parents:
        level = [p for p in everyone if p.parent in parents]
        found += level
        parents = {p.pid for p in level}
    return found


def stubs(server_pid: int) -> dict[int, str]:
    """Python stubs of a tritonserver: process number -> model instance (as in `restore_0_0`)."""
    found = {}
    for process in children(server_pid):
        if process.name != _STUB:
            continue
        try:
            words = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if len(words) > _INSTANCE_WORD:
            found[process.pid] = words[_INSTANCE_WORD].decode()
    return found


def dead_stubs(server_pid: int) -> dict[int, int]:
    """Stubs that have ended and that their tritonserver has not noticed: number -> wait status.

    The stub's shell counts as one: what cannot be started ends as `bash`.
    """
    found = {}
    for process in processes():
        if process.parent != server_pid or process.state != "Z":
            continue
        if process.name not in (_STUB, "bash"):
            continue
        try:
            text = Path(f"/proc/{process.pid}/stat").read_text()
        except OSError:
            continue  # reaped in between
        found[process.pid] = int(text[text.rindex(")") + 2 :].split()[_EXIT_CODE_FIELD])
    return found


def listening_ports(pids: list[int]) -> set[int]:
    """TCP ports on which one of the processes listens."""
    sockets = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    sockets.add(str(entry.readlink()))
    ports = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                _, local, _, state, *rest = line.split()
                if state == _LISTEN and f"socket:[{rest[_INODE_FIELD]}]" in sockets:
                    ports.add(int(local.rpartition(":")[2], 16))
    return ports


def peak_memory(pids: list[int]) -> int:
    """Sum of the processes' peak resident sizes in bytes.

    An upper bound of their joint peak: the peaks need not fall together, and shared memory
    counts once per process.
    """
    total = 0
    for pid in pids:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        for line in status.splitlines():
            if line.startswith("VmHWM:"):
                total += int(line.split()[1]) * 1024
    return total


def cpu_seconds(pids: list[int]) -> float:
    """Processor time that the processes have used, user and system."""
    ticks = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            continue
        fields = text[text.rindex(")") + 2 :].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
