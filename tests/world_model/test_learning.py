"""The learner's form of the networks: outputs and gradients of the plain layers, in double precision."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from test_networks import ACTION, OBSERVATION, SMALL, TASKS, build
from torch import Tensor, nn

from ezm_pl.world_model import WorldModel
from ezm_pl.world_model.learning import Network, learning_form

ROWS = 7


def model() -> WorldModel:
    """No layer is trivial: LayerNorms have scales and shifts of their own, last layers are not zero."""
    plain = build().double()
    generator = torch.Generator().manual_seed(3)
    for parameter in plain.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data.add_(noise, alpha=0.2)
    return plain


def draw(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape) + shape[-1])
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


TASK = torch.arange(ROWS) % TASKS
CALLS: dict[str, Callable[[WorldModel, Tensor], Tensor]] = {
    "encoder": lambda m, _: m.encode(draw(ROWS, OBSERVATION), TASK),
    "dynamics": lambda m, s: m.next_latent(s, draw(ROWS, ACTION), TASK),
    "reward_trunk": lambda m, s: m.reward_logits(s, draw(ROWS, ACTION), TASK),
    "trunk": lambda m, s: m.features(s, TASK),
    "projector": lambda m, s: m.projector(s),
    "predictor": lambda m, _: m.predict(draw(ROWS, SMALL["projection_size"])),
}


@pytest.mark.parametrize("name", CALLS)
def test_equals_the_plain_layers(name: str) -> None:
    plain = model().eval()
    found = []
    for each in (plain, learning_form(plain)):
        plain.zero_grad()
        latent = draw(ROWS, SMALL["latent_size"]).requires_grad_()
        out = CALLS[name](each, latent)
        (out * draw(*out.shape)).sum().backward()
        gradients = {n: p.grad for n, p in plain.named_parameters() if p.grad is not None}
        found.append((out.detach(), latent.grad, gradients))
    (out, of_latent, gradients), (fused, of_latent_fused, gradients_fused) = found
    torch.testing.assert_close(fused, out)
    torch.testing.assert_close(of_latent_fused, of_latent)
    assert any(key.startswith(name) for key in gradients)
    torch.testing.assert_close(gradients_fused, gradients)


def test_only_the_first_rows_get_a_gradient() -> None:
    """Outputs of all rows; the gradient is as if the others were not there."""
    plain = model()
    network = Network(plain.encoder)
    assert isinstance(plain.encoder[0], nn.Linear)
    x = draw(ROWS, plain.encoder[0].in_features)
    graded = x[:3].clone().requires_grad_()
    first, others = network.split(x, graded)
    torch.testing.assert_close(torch.cat([first, others]), plain.encoder(x))
    assert not others.requires_grad
    direction = draw(*first.shape)
    (first * direction).sum().backward()
    found = [graded.grad, *(p.grad for p in plain.encoder.parameters())]
    plain.zero_grad()
    alone = x[:3].clone().requires_grad_()
    (plain.encoder(alone) * direction).sum().backward()
    torch.testing.assert_close(found, [alone.grad, *(p.grad for p in plain.encoder.parameters())])


@pytest.mark.parametrize("name", ["dynamics", "trunk"])
def test_a_gradient_of_latents_alone_asks_for_none_of_the_weights(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = model()
    latent = draw(ROWS, SMALL["latent_size"]).requires_grad_()
    out = CALLS[name](learning_form(plain), latent)
    weights = [p for key, p in plain.named_parameters() if key.startswith(name)]
    expected = torch.autograd.grad(CALLS[name](plain, latent).sum(), weights)
    torch.testing.assert_close(torch.autograd.grad(out.sum(), weights, retain_graph=True), expected)

    def fail(*_: object) -> None:
        raise AssertionError("weights got a gradient")

    monkeypatch.setattr("ezm_pl.world_model.residual.Residuals.gradients", fail)
    (found,) = torch.autograd.grad(out.sum(), latent, retain_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad(CALLS[name](plain, latent).sum(), latent)[0])
    with pytest.raises(AssertionError, match="weights got"):
        torch.autograd.grad(out.sum(), weights)
