"""A search as one C++ program: the same results as without, for whatever weights, heads and generator."""

from __future__ import annotations

import shutil

import pytest
import torch
from test_tree import small_inference_model

from ezm_pl.search import Planner
from ezm_pl.spec.experiment import SearchSpec
from ezm_pl.world_model import InferenceModel

SPEC = SearchSpec(num_simulations=8, num_root_actions=4, mode_candidate=True, correct_proposal=True)


def other_weights(model: InferenceModel) -> InferenceModel:
    """The model with its weights moved a little and other value heads drawn."""
    generator = torch.Generator().manual_seed(1)
    state = {
        name: x + 0.05 * torch.randn(x.shape, generator=generator) if x.is_floating_point() else x
        for name, x in model.state_dict().items()
    }
    model.load_state_dict(state)
    model.draw_heads(torch.Generator().manual_seed(4))
    return model


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_a_compiled_search_finds_the_same() -> None:
    plain = Planner(SPEC, 0.97, 5)
    compiled = Planner(SPEC.model_copy(update={"compiled": True}), 0.97, 5)
    model = small_inference_model()
    observation, task = torch.randn(3, 7, generator=torch.Generator().manual_seed(0)), torch.arange(3)
    seen = []
    for change in (False, True):
        model = other_weights(model) if change else model
        for seed in range(3):
            generators = [torch.Generator().manual_seed(seed) for _ in range(2)]
            expected = plain(model, observation, task, generators[0])
            found = compiled(model, observation, task, generators[1])
            assert torch.equal(found.visits, expected.visits) and torch.equal(found.best, expected.best)
            for name in ("actions", "q", "weights", "action", "value", "root_value"):
                torch.testing.assert_close(
                    getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-4, msg=name
                )
            assert torch.equal(generators[0].get_state(), generators[1].get_state())
            seen.append(found.q)
    assert compiled._compiled is not None and list(compiled._compiled._programs) == [3]
    assert not any(torch.allclose(a, b) for i, a in enumerate(seen) for b in seen[:i])
