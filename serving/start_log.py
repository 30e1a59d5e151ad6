"""Why a start failed, read from the server's log."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from pikfix.serving.startup import STUB_DIED

# How the launcher begins its own lines.
OWN = "tritonserver: "
_WARNING = "tritonserver: warning"
# A line of Triton's own: severity, date, time, process, place. The rest is what stubs print.
_TRITON = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ \d+ \S+\] ?")
_TABLE = re.compile(r"[|+]")
_LOAD_FAILURE = re.compile(r"failed to load '([^']+)' version \d+: (.*)")
_LOADING = re.compile(r"\"loading: ([^\"]+):\d+\"")
_LOADED = re.compile(r"successfully loaded '([^']+)'")
_SOCKET_TAKEN = re.compile(r"failed to start (\w+) service: .*Socket '(.+):(\d+)' already in use")
# How a traceback's last line and the loader's complaint begin, among all that a stub may print.
_REASON = re.compile(
    r"(\w+(\.\w+)*(Error|Exception|Interrupt): )|error while loading shared|Fatal Python error"
    r"|bash: |terminate called|  what\(\):"
)


class StartLog:
    """The part of a log file that belongs to one start."""

    def __init__(self, path: Path, start: int):
        self._path = path
        with path.open("rb") as log:
            log.seek(start)
            self._lines = log.read().decode(errors="replace").splitlines()

    def failure(self) -> str | None:
        """One line on a model that failed to load or a port that was taken; None without."""
        for line in self._lines:
            taken = _SOCKET_TAKEN.search(line)
            if taken:  # since the look at it before the start
                name = taken[1].lower()
                return (
                    f"{name} port {taken[3]} on {taken[2]} is in use; stop what listens there "
                    f"or give another --{name}-port"
                )
            found = _LOAD_FAILURE.search(line)
            if found:
                # Triton writes line breaks as `\\n`, and a traceback's places after `At:`.
                reason = found[2].strip('"').partition("\\n\\nAt:")[0]
                reason = " ".join(reason.replace("\\n", " ").split())
                return f"model {found[1]} failed to load: {reason}; the log is {self._path}"
        return None

    def still_loading(self) -> str:
        """`: still loading a, b`, or nothing where the log does not say."""
        names = self._unfinished()
        return f": still loading {', '.join(names)}" if names else ""

    def why_ended(self) -> str:
        """One line on a server that ended before it was ready."""
        own = [line for line in self._lines if line.startswith(OWN)]
        errors = [line for line in own if not line.startswith(_WARNING)]
        if errors:
            message = errors[-1].removeprefix(OWN)
            return self._with_reason(message) if message.startswith(STUB_DIED) else message
        failure = self.failure()
        if failure is not None:
            return failure
        last = next((line for line in reversed(self._lines) if line.strip()), "no output")
        return f"the server ended before it was ready: {last.strip()}; the log is {self._path}"

    def _unfinished(self) -> list[str]:
        counts: Counter[str] = Counter()
        for line in self._lines:
            for pattern, step in ((_LOADING, 1), (_LOADED, -1)):
                found = pattern.search(line)
                if found:
                    counts[found[1]] += step
        return sorted(name for name, count in counts.items() if count > 0)

    def _with_reason(self, message: str) -> str:
        """Add what the stub printed; the model's name, where only one can be meant."""
        names = self._unfinished()
        if len(names) == 1:
            message = message.replace(f"{STUB_DIED}a model ", f"{STUB_DIED}{names[0]} ")
        said = [
            line.strip()
            for line in self._lines
            if line.strip()
            and not (_TRITON.match(line) or _TABLE.match(line))
            and not line.startswith(OWN)
        ]
        telling = [line for line in said if _REASON.match(line)] or said
        reason = f": {' '.join(telling[-1].split())}" if telling else ""
        return f"{message}{reason}; the log is {self._path}"
