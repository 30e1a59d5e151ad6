from __future__ import annotations

import dataclasses
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import slow_kinds
import torch
import workers
from hypothesis import settings

from pikfix.export import Manifest, export_checkpoint, read_manifest
from pikfix.systems.checkpoint import save_checkpoint
from pikfix.systems.damage.networks import DamageConfig
from pikfix.systems.pikfix.networks import PikFix, PikFixConfig

# How long an example takes depends on what else the machine does, and is not under test.
# The examples are the same in every run.
settings.register_profile("pikfix", deadline=None, derandomize=True)
settings.load_profile("pikfix")


def pytest_configure(config: pytest.Config) -> None:
    workers.settle(config)
    # What starts the tests in the background may ignore these, and so would all that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    config.option.randomly_reset_seed = False  # pytest-randomly: the order alone, not the numbers


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell how to have a shuffled order again, which -q leaves out at the top."""
    options = terminalreporter.config.option
    if getattr(options, "randomly_reorganize", False):
        terminalreporter.write_line(f"this order again: --randomly-seed={options.randomly_seed}")


@pytest.fixture(autouse=True)
def settled() -> Iterator[None]:
    """Every test starts from the same random numbers, on one thread, and leaves none of its own.

    Two workers have two cores, and the networks of the tests are too small for two threads.
    Steps and compiled C++ flush subnormal numbers for good: not into other tests.
    """
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def tiny_config() -> PikFixConfig:
    """The paper's layout, every width cut down."""
    return PikFixConfig(
        name="tiny",
        damage=DamageConfig("tiny", (4, 6), (4, 6), limit=128, softness=0.2),
        restoration_channels=8,
        restoration_growth=4,
        restoration_coarse_channels=(12, 16),
        tone_channels=4,
        backbone_blocks=(1, 1, 1, 1),
        backbone_width=8,
        adapter_channels=8,
        feature_channels=16,
        bins=8,
        stem_channels=8,
        encoder_units=(2, 2, 2, 2),
        growth=4,
        bottleneck=8,
        fusion_units=2,
        decoder_channels=(16, 16, 8, 8, 8),
        decoder_units=(1, 1, 1, 1, 1),
    )


@pytest.fixture(scope="session")
def smallest_config(tiny_config: PikFixConfig) -> PikFixConfig:
    """One unit of everything: where only the surroundings of the networks are under test."""
    return dataclasses.replace(
        tiny_config,
        name="smallest",
        restoration_channels=4,
        restoration_growth=2,
        restoration_coarse_channels=(),
        restoration_blocks=1,
        restoration_units=1,
        backbone_width=4,
        adapter_channels=4,
        feature_channels=8,
        stem_channels=4,
        encoder_units=(1, 1, 1, 1),
        fusion_units=1,
        decoder_channels=(8, 8, 8, 4, 4),
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `make test-fast` leaves out, by where it lies and by what it asks for."""
    for item in items:
        if slow_kinds.is_slow(item):
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def tiny(tiny_config: PikFixConfig) -> PikFix:
    """A tiny network whose outputs are not the untrained zero."""
    torch.manual_seed(0)
    model = PikFix(tiny_config)
    for layer in (model.restoration.output, model.colorization.output):
        torch.nn.init.normal_(layer.weight, std=0.05)
    torch.nn.init.normal_(model.restoration.tone.estimate[-1].weight, std=0.1)
    return model.eval()


@pytest.fixture(scope="session")
def checkpoint(tiny_config: PikFixConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network with seeded weights that change their input.

    One file for all processes: the order of a safetensors header differs from one to the next.
    """

    def write(folder: Path) -> None:
        torch.manual_seed(0)
        model = PikFix(tiny_config)
        # A detector that takes a part of a photo for damage, and a filler that changes it.
        torch.nn.init.normal_(model.damage.detector.output.weight, std=1.0)
        torch.nn.init.constant_(model.damage.detector.output.bias, -0.85)
        for layer in (
            model.damage.filler.output,
            model.restoration.output,
            model.colorization.output,
        ):
            torch.nn.init.normal_(layer.weight, std=0.05)
        torch.nn.init.normal_(model.restoration.tone.estimate[-1].weight, std=0.1)
        save_checkpoint(model, folder / "tiny.safetensors", {"steps": "0"})

    return workers.once(tmp_path_factory, "checkpoint", write) / "tiny.safetensors"


@pytest.fixture(scope="session")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """A repository filled from the tiny checkpoint, and its manifest."""
    folder = workers.once(
        tmp_path_factory,
        "export",
        lambda folder: export_checkpoint(checkpoint, folder / "model_repository"),
    )
    repository = folder / "model_repository"
    return repository, read_manifest(repository)
