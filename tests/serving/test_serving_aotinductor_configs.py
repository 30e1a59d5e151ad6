"""Configs of AOTInductor packages on a real tritonserver, whose pytorch backend is stood in for.

The embedded server has no such backend. What it does have are the rules for names, shapes and
batches of a repository: ensembles that take batches around steps that do not.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from pikfix_steps import NETWORKS, SYSTEM
from tritonclient import grpc
from tritonclient.grpc import model_config_pb2 as pb

from pikfix.export.configs import build_configs, render
from pikfix.export.runtimes.aotinductor import AOTInductor
from pikfix.serving.server import RunningServer, start_server
from pikfix.systems.pikfix.networks import PikFixConfig

pytestmark = pytest.mark.serving

STAND_IN = """
import json
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.name = args["model_name"]
        config = json.loads(args["model_config"])
        self.channels = [entry["dims"][1] for entry in config["output"]]
        self.inputs = len(config["input"])

    def execute(self, requests):
        assert len(requests) == 1, "merged"
        return [self.answer(request) for request in requests]

    def answer(self, request):
        given = [
            pb_utils.get_input_tensor_by_name(request, f"INPUT__{i}").as_numpy()
            for i in range(self.inputs)
        ]
        batch, _, height, width = given[0].shape
        mean = given[0].mean(axis=(1, 2, 3))
        outputs = []
        for position, channels in enumerate(self.channels):
            if self.name == "similarity" and position == len(self.channels) - 1:
                sides = given[1].shape[1:2]
            else:
                channels = max(1, channels)
                scale = 4 << position % 4 if self.name == "similarity" else 1
                sides = (channels, height // scale, width // scale)
            value = np.broadcast_to(mean.reshape(-1, *[1] * len(sides)), (batch, *sides))
            outputs.append(pb_utils.Tensor(f"OUTPUT__{position}", value.astype(np.float32)))
        return pb_utils.InferenceResponse(outputs)
"""


@pytest.fixture(scope="module")
def server(
    tiny_config: PikFixConfig, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        runtime = AOTInductor("fp16", native=True)
    configs = build_configs(SYSTEM, tiny_config, dict.fromkeys(NETWORKS, runtime))
    repository = tmp_path_factory.mktemp("aotinductor") / "model_repository"
    for name in (*NETWORKS, "pikfix"):
        config = configs[name]
        (repository / name / "1").mkdir(parents=True)
        if name in NETWORKS:
            config.platform, config.backend, config.default_model_filename = "", "python", ""
            config.instance_group[0].kind = pb.ModelInstanceGroup.KIND_CPU
            (repository / name / "1" / "model.py").write_text(STAND_IN)
        (repository / name / "config.pbtxt").write_text(render(config))
    with start_server(repository) as running:
        yield running


def test_ensembles_take_batches_around_steps_that_do_not(server: RunningServer) -> None:
    levels = np.arange(1, 7, dtype=np.float32) / 8
    with grpc.InferenceServerClient(server.grpc_url) as client:
        for batch in (1, 3):
            photo = np.broadcast_to(levels[:batch, None, None, None], (batch, 1, 64, 96))
            lab = np.zeros((batch, 2, 3, 32, 64), np.float32)
            asked = []
            for name, values in (("photo_l", photo), ("reference_lab", lab)):
                asked.append(grpc.InferInput(name, list(values.shape), "FP32"))
                asked[-1].set_data_from_numpy(np.ascontiguousarray(values))
            answer = client.infer("pikfix", asked)
            np.testing.assert_array_equal(answer.as_numpy("restored_l"), photo)
            ab = answer.as_numpy("ab")
            assert ab.shape == (batch, 2, 64, 96)
            np.testing.assert_array_equal(ab, np.broadcast_to(photo, ab.shape))
