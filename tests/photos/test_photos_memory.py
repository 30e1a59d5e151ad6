import subprocess
import sys

from pikfix.photos import memory


def test_memory_is_given_back_now_and_then(monkeypatch):
    clock, given_back = [1000.0], []
    monkeypatch.setattr(memory.time, "monotonic", lambda: clock[0])
    kept = memory.KeptMemory()
    monkeypatch.setattr(kept, "_trim", lambda _: given_back.append(clock[0]))
    for clock[0] in (1001.0, 1029.0, 1031.0, 1032.0, 1060.0, 1062.0):
        kept.give_back()
    assert given_back == [1031.0, 1062.0]


FAULTS = """
import resource, sys
import numpy as np
from pikfix.photos import memory

kept = memory.KeptMemory() if sys.argv[1] == "kept" else None
if kept is not None:
    memory.GIVE_BACK_SECONDS = -1.0

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        planes = [np.ones(1 << 21, np.float32) for _ in range(6)]
        del planes
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
if kept is not None:
    kept.give_back()
    print(faults())
"""


def test_what_is_freed_is_there_for_the_next_picture():
    def run(how):
        command = [sys.executable, "-c", FAULTS, how]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return [int(line) for line in done.stdout.split()]

    pages = (1 << 23) // 4096
    (by_default,) = run("default")
    kept, after_giving_back = run("kept")
    assert by_default > 10 * pages  # else there is nothing to keep
    assert kept < pages / 4
    assert after_giving_back > pages / 4
