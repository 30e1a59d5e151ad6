"""Inputs of every class the kernels must handle, and the error measures they are held to."""

from types import SimpleNamespace

import pytest
import torch

from pikfix.kernels import naive


def _patches(channels, count, shift):
    """Features of a real photo: random projections of its patches at three scales."""
    data = pytest.importorskip("skimage").data
    side = int(count**0.5) + 1
    grey = torch.tensor(data.astronaut().mean(-1) / 255).float()[None, None]
    grey = torch.nn.functional.interpolate(grey.roll(shift, dims=2), (side * 8, side * 8))
    generator = torch.Generator().manual_seed(7)
    parts = []
    for size in (16, 32, 64):
        weight = torch.randn(channels, 1, size, size, generator=generator) / size
        weight -= weight.mean(dim=(2, 3), keepdim=True)
        part = torch.nn.functional.conv2d(grey, weight, stride=8, padding=size // 2)
        parts.append(part[:, :, :side, :side].relu().flatten(2))
    mixed = torch.cat(parts, dim=1)
    weight = torch.randn(channels, mixed.shape[1], generator=generator)
    return (weight @ mixed).transpose(1, 2)[:, :count]


def make_inputs(kind, batch, queries, keys, channels, width):
    """Query, key and values in float32; queries and keys of unit length (or zero)."""
    query, key = torch.randn(batch, queries, channels), torch.randn(batch, keys, channels)
    if kind == "photo":
        query = _patches(channels, queries, 0).repeat(batch, 1, 1)
        key = _patches(channels, keys, 13).repeat(batch, 1, 1)
    query, key = naive.center_normalize(query), naive.center_normalize(key)
    values = torch.rand(batch, keys, width)
    if kind == "planted":
        chosen = torch.randint(keys, (queries,))
        query = key[:, chosen] + 0.02 * torch.randn(batch, queries, channels)
        query = torch.nn.functional.normalize(query, dim=2)
        values = torch.nn.functional.one_hot(torch.arange(keys) % width, width).float()
        values = values.repeat(batch, 1, 1)
    elif kind == "duplicates":
        key = key[:, torch.arange(keys) // 2]
    elif kind == "low":
        query[..., : channels // 2], key[..., channels // 2 :] = 0, 0
        query, key = (torch.nn.functional.normalize(t, dim=2) for t in (query, key))
        query = 0.98 * query + 0.19 * naive.center_normalize(torch.randn_like(query))
    elif kind == "zeros":
        query[:, ::5], key[:, ::3] = 0, 0
    return query, key, values


def errors(got, expected):
    """Relative Frobenius norm of the error, and that of the 99.9th percentile row."""
    assert not got.isnan().any(), "poisoned or invalid output"
    got, expected = got.detach().double().cpu(), expected.detach().double().cpu()
    rows = (got - expected).norm(dim=-1) / expected.norm(dim=-1).clamp_min(1e-12)
    whole = (got - expected).norm() / expected.norm().clamp_min(1e-12)
    return float(whole), float(rows.flatten().quantile(0.999))


@pytest.fixture
def kit():
    return SimpleNamespace(make_inputs=make_inputs, errors=errors)


@pytest.fixture(autouse=True)
def _settled():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def poison(monkeypatch):
    """Fill every newly made tensor of floats with NaN, so that an unwritten element shows."""

    def poisoned(make):
        def wrapped(*args, **kwargs):
            made = make(*args, **kwargs)
            return made.fill_(float("nan")) if made.is_floating_point() else made

        return wrapped

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
