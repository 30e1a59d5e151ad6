"""Inputs of every class the kernels must handle, and the error measures they are held to."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
