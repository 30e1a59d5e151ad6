"""Processes of a running server: who its children are and how much they hold."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

import psutil

_STUB = "triton_python_b"  # the kernel keeps 15 characters of a process's name
# Words of a stub's command line: path, model file, region, two sizes, parent, location, offset,
# instance name, runtime folder.
_INSTANCE_WORD = 8
_EXIT_CODE_FIELD = 49  # the 52nd of /proc/PID/stat, counted from the state


def _below(pid: int, *, dead: bool = False, recursive: bool = False) -> list[psutil.Process]:
    """Children of a process, living ones or those that it has not noticed to have ended."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(pid).children(recursive=recursive):
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended in between
                if (process.status() == psutil.STATUS_ZOMBIE) == dead:
                    found.append(process)
    return found


def children(pid: int) -> list[psutil.Process]:
    """Living children of a process."""
    return _below(pid)


def tree(pid: int) -> list[psutil.Process]:
    """A process, its living children, their children, and so on."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [psutil.Process(pid), *_below(pid, recursive=True)]
    return []


def stubs(server_pid: int) -> dict[int, str]:
    """Python stubs of a tritonserver: process number -> model instance (as in `restore_0_0`)."""
    found = {}
    for process in children(server_pid):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if _name(process) == _STUB and len(words := process.cmdline()) > _INSTANCE_WORD:
                found[process.pid] = words[_INSTANCE_WORD]
    return found


def dead_stubs(server_pid: int) -> dict[int, int]:
    """Stubs that have ended and that their tritonserver has not noticed: number -> wait status.

    The stub's shell counts as one: what cannot be started ends as `bash`.
    """
    found = {}
    for process in _below(server_pid, dead=True):
        # psutil does not tell how a process ended.
        with contextlib.suppress(OSError, psutil.NoSuchProcess):
            if _name(process) in (_STUB, "bash"):
                text = Path(f"/proc/{process.pid}/stat").read_text()
                found[process.pid] = int(text[text.rindex(")") + 2 :].split()[_EXIT_CODE_FIELD])
    return found


def _name(process: psutil.Process) -> str:
    """The name as the kernel keeps it; psutil completes it from the command line."""
    return str(process.name())[: len(_STUB)]


def listening_ports(processes: Iterable[psutil.Process]) -> set[int]:
    """TCP ports on which one of the processes listens."""
    ports = set()
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            for socket in process.net_connections("tcp"):
                if socket.status == psutil.CONN_LISTEN:
                    ports.add(socket.laddr.port)
    return ports


def peak_memory(processes: Iterable[psutil.Process]) -> int:
    """Sum of the processes' peak resident sizes in bytes.

    An upper bound of their joint peak: the peaks need not fall together, and shared memory
    counts once per process.
    """
    total = 0
    for process in processes:
        with contextlib.suppress(OSError):  # psutil has today's size alone
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    total += int(line.split()[1]) * 1024
    return total


def cpu_seconds(processes: Iterable[psutil.Process]) -> float:
    """Processor time that the processes have used, user and system."""
    seconds = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            seconds += times.user + times.system
    return seconds
