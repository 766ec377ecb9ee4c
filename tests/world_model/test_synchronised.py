"""BatchNorm and the normaliser on two ranks see the whole batch: against torch's own on one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn

from ezm_pl.world_model.layers import RunningNorm
from ezm_pl.world_model.synchronised import BatchNorm, count_batches

ROWS, WIDTH = 12, 5


def batches() -> list[Tensor]:
    """Three batches whose halves have different means; the first column is far from zero."""
    generator = torch.Generator().manual_seed(0)
    made = torch.randn(3, ROWS, WIDTH, generator=generator)
    made[:, : ROWS // 2] += 2
    made[..., 0] = 50 + made[..., 0] / 10
    return list(made)


def through(norm: nn.BatchNorm1d, x: Tensor) -> dict[str, Tensor]:
    """Output and gradients of a loss that depends on every entry differently."""
    norm.zero_grad()
    x = x.clone().requires_grad_()
    y = norm(x)
    (y.sin() * torch.linspace(0.5, 2, WIDTH)).sum().backward()
    assert x.grad is not None and norm.weight.grad is not None and norm.bias.grad is not None
    return {"y": y.detach(), "dx": x.grad, "dw": norm.weight.grad.clone(), "db": norm.bias.grad.clone()}


def everything(own: slice, norm: nn.BatchNorm1d) -> dict[str, Any]:
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 1.5, WIDTH))
        norm.bias.copy_(torch.linspace(-1, 1, WIDTH))
    normalizer = RunningNorm(WIDTH)
    passes = []
    for x in batches():
        passes.append(through(norm, x[own]))
        count_batches(norm)
        normalizer.update(x[own])
    norm.eval()
    return {
        "passes": passes,
        "buffers": {name: x.clone() for name, x in norm.named_buffers()},
        "normalizer": normalizer.state_dict(),
        "eval": norm(batches()[0][own]).detach(),
        "bfloat16": norm.train()(batches()[1][own].bfloat16()).dtype,
    }


def rank(number: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=2)
    half = ROWS // 2
    torch.save(everything(slice(number * half, (number + 1) * half), BatchNorm(WIDTH)), f"{folder}/{number}")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(rank, (str(folder),), nprocs=2)
    return [torch.load(Path(folder) / str(number), weights_only=True) for number in range(2)]


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    return everything(slice(None), nn.BatchNorm1d(WIDTH))


def test_batch_norm_is_that_of_the_whole_batch(halves: list[dict[str, Any]], whole: dict[str, Any]) -> None:
    for step, expected in enumerate(whole["passes"]):
        one, two = (half["passes"][step] for half in halves)
        for name in ("y", "dx"):
            together = torch.cat([one[name], two[name]])
            torch.testing.assert_close(together, expected[name], rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(together[:, 1:], expected[name][:, 1:], rtol=1e-5, atol=1e-5)
        for name in ("dw", "db"):
            torch.testing.assert_close(one[name] + two[name], expected[name], rtol=1e-3, atol=1e-3)


def test_statistics_are_equal_on_both_ranks_and_right(
    halves: list[dict[str, Any]], whole: dict[str, Any]
) -> None:
    one, two = halves
    for kind in ("buffers", "normalizer"):
        for name, expected in whole[kind].items():
            assert torch.equal(one[kind][name], two[kind][name]), name
            torch.testing.assert_close(one[kind][name], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.cat([one["eval"], two["eval"]]), whole["eval"], rtol=1e-2, atol=1e-2)
    assert one["bfloat16"] == torch.bfloat16


def test_alone_it_is_torch_s_own() -> None:
    mine, torchs = (everything(slice(None), norm) for norm in (BatchNorm(WIDTH), nn.BatchNorm1d(WIDTH)))
    for ours, theirs in zip(mine["passes"], torchs["passes"], strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
