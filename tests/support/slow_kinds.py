"""Which tests `make test-fast` leaves out: servers, cross-compiling, engines, training runs.

The kind of a test follows from the fixtures that it asks for, its markers and the file it is in, so
that a new test of a slow kind is left out without a word.
"""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

# A server, an export or a training run for whoever asks.
FIXTURES = {"exported", "toy_server", "nothing_left", "identity_repository", "make_identity"}
FIXTURES_OF = {"training": {"run"}, "references": {"server"}, "gateway": {"page"}}

MARKERS = ("serving", "engines", "packages", "gpu")

# Files about things that are slow by nature.
FILES = {
    "benchmarks/test_benchmarks_gpu_campaign.py": "a campaign in processes of its own",
    "cli/test_cli_batch_ray.py": "starts a cluster",
    "export/test_export_aotinductor.py": "compiles C++",
    "export/test_export_engines.py": "builds engines",
    "export/test_export_pytorch.py": "exports in every precision",
    "export/test_export_tensorrt_plugin.py": "exports for a plugin",
    "export/test_export_tensorrt_precision.py": "exports and runs half precision",
    "kernels/test_kernels_ptx.py": "cross-compiles",
    "kernels/test_kernels_specialisation.py": "cross-compiles",
    "kernels/test_kernels_triton.py": "cross-compiles, and runs the interpreter",
    "training/test_training_cpu.py": "training runs in processes of their own",
    "training/test_training_resume.py": "training runs, killed and resumed",
}


def is_slow(item: pytest.Item) -> bool:
    """Whether a test is of a slow kind."""
    place = item.path.relative_to(TESTS)
    asked = set(getattr(item, "fixturenames", ()))
    wanted = FIXTURES | FIXTURES_OF.get(place.parts[0], set())
    return (
        place.as_posix() in FILES
        or bool(asked & wanted)
        or any(item.get_closest_marker(name) for name in MARKERS)
    )
