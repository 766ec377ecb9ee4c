"""Gradients are halved at every unroll step."""

import torch
from torch import Tensor, nn
from training_worlds import make_batch, make_experiment, make_sizes

from ezm_pl.training.losses import halve_gradient, imagine

EXPERIMENT = make_experiment({"targets": {"unroll_steps": 3, "td_steps": 2, "discount": 0.9}})


class Line(nn.Module):
    """Latents are numbers: `e o`, then `d s + a`."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.d = nn.Parameter(torch.tensor(3.0)), nn.Parameter(torch.tensor(2.0))
        self.dynamics = nn.Identity()

    def embed(self, task: Tensor) -> Tensor:
        return task

    def encode(self, observation: Tensor, task: Tensor) -> Tensor:
        return self.e * observation

    def next_latent(self, latent: Tensor, action: Tensor, task: Tensor) -> Tensor:
        return self.d * latent + action


def test_the_gradient_is_halved_at_every_unroll_step() -> None:
    """o = 5, a = (1, 10): s0 = e o = 15, s1 = d s0 + 1 = 31, s2 = d s1 + 10 = 72.

    By d: s0 gives 0, s1 s0 / 2 = 7.5, s2 (s1 + d s0 / 2) / 2 = 23. By e: o = 5, d o / 2 = 5, d d o / 4 = 5.
    """
    model = Line()
    batch = make_batch(EXPERIMENT, make_sizes([1], [1]), 1)._replace(
        observation=torch.full((1, 6, 1), 5.0), action=torch.tensor([[[1.0], [10.0]]])
    )
    latents = imagine(model, batch, 2)  # type: ignore[arg-type]
    assert latents[0, :, 0].tolist() == [15, 31, 72]
    for k, expected in enumerate([[0.0, 5.0], [7.5, 5.0], [23.0, 5.0]]):
        found = torch.autograd.grad(
            latents[0, k, 0], (model.d, model.e), retain_graph=True, allow_unused=True
        )
        assert [0.0 if g is None else float(g) for g in found] == expected


def test_halve_gradient_by_hand() -> None:
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    (halve_gradient(x) * torch.tensor([3.0, 5.0])).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1.5, 2.5]
    torch.testing.assert_close(halve_gradient(x), x)
