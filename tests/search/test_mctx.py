"""Our sequential search against DeepMind's mctx on the same random tabular models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from search_models import TabularModel, search_tables

from ezm_pl.search import SearchResult, SearchSettings, roots

jax = pytest.importorskip("jax", reason="the oracle extra (jax, mctx) is not installed")
mctx = pytest.importorskip("mctx", reason="the oracle extra (jax, mctx) is not installed")

TREES = 80
LIKE_MCTX = SearchSettings(range_floor=1e-8, wave=1, normalization="node")
SIZES = [
    # actions, simulations, max_considered, states, discount
    (2, 4, 16, 7, 0.9),
    (3, 12, 2, 40, 1.0),
    (5, 33, 1, 90, 0.99),
    (6, 64, 16, 200, 0.99),
    (8, 24, 7, 90, 0.8),
    (16, 9, 16, 90, 0.99),
    (16, 64, 8, 300, 0.97),
]


def mctx_search(
    model: TabularModel, simulations: int, considered: int, discount: float
) -> Callable[[float], dict[str, np.ndarray]]:
    """`gumbel_muzero_policy`, compiled, as a function of the scale of its Gumbel noise.

    It gives visits, completed Q, action weights, choice, root mean and the noise that was drawn.
    """
    jnp = jax.numpy
    tables = [jnp.asarray(t.numpy()) for t in (model.next_state, model.reward, model.value, model.prior)]
    following, reward, value, prior = tables
    rows = jnp.arange(model.models)

    def recurrent(params: Any, key: Any, action: Any, here: Any) -> tuple[Any, Any]:
        there = following[rows, here, action]
        output = mctx.RecurrentFnOutput(
            reward=reward[rows, here, action],
            discount=jnp.full(rows.shape, discount),
            prior_logits=prior[rows, there],
            value=value[rows, there],
        )
        return output, there

    def run(key: Any, scale: Any) -> tuple[Any, ...]:
        root = mctx.RootFnOutput(prior_logits=prior[:, 0], value=value[:, 0], embedding=jnp.zeros_like(rows))
        output = mctx.gumbel_muzero_policy(
            params=(),
            rng_key=key,
            root=root,
            recurrent_fn=recurrent,
            num_simulations=simulations,
            max_num_considered_actions=considered,
            gumbel_scale=scale,
        )
        found = output.search_tree
        visits = found.summary().visit_counts
        raw = jax.vmap(
            lambda one: mctx.qtransform_completed_by_mix_value(
                one, 0, value_scale=1.0, maxvisit_init=1.0, rescale_values=False
            )
        )(found)
        completed = raw / (1 + visits.max(-1, keepdims=True))
        gumbel = found.extra_data.root_gumbel
        return visits, completed, output.action_weights, output.action, found.node_values[:, 0], gumbel

    names = ("visits", "q", "weights", "best", "value", "gumbel")
    # Compiling is most of the time here: leave the optimiser out.
    compiled = jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})

    def found(gumbel_scale: float) -> dict[str, np.ndarray]:
        arrays = compiled(jax.random.key(1), gumbel_scale)
        return {name: np.array(array) for name, array in zip(names, arrays, strict=True)}

    return found


def assert_equal(ours: SearchResult, theirs: dict[str, np.ndarray]) -> None:
    np.testing.assert_array_equal(ours.visits.numpy(), theirs["visits"])
    np.testing.assert_array_equal(ours.best.numpy(), theirs["best"])
    np.testing.assert_allclose(ours.q.numpy(), theirs["q"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours.weights.numpy(), theirs["weights"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours.value.numpy(), theirs["value"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("actions", "simulations", "considered", "states", "discount"), SIZES)
def test_sequential_search_equals_mctx(
    actions: int,
    simulations: int,
    considered: int,
    states: int,
    discount: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """7 sizes x 80 trees, without and with Gumbel noise: 1,120 searches, every one equal."""
    model = TabularModel.random(TREES, states, actions, seed=100 * actions + simulations)
    oracle = mctx_search(model, simulations, considered, discount)
    settings = replace(LIKE_MCTX, num_simulations=simulations, max_considered=considered, discount=discount)
    for gumbel_scale in (0.0, 1.0):
        theirs = oracle(gumbel_scale)
        noise = torch.from_numpy(theirs["gumbel"])
        monkeypatch.setattr(roots, "_gumbel", lambda prior, scale, generator, noise=noise: noise)
        ours = search_tables(model, replace(settings, gumbel_scale=gumbel_scale))
        assert_equal(ours, theirs)
        assert (ours.visits.sum(1) == simulations).all()


def test_waves_equal_mctx_without_priors_and_noise() -> None:
    """Waves are exact in node normalisation where priors and noise are equal for all candidates.

    A wave freezes the order of the root's candidates. Without priors and noise that order is the
    order of their Q, which no scale changes; below the root each subtree scales by its own Q alone.
    """
    model = TabularModel.random(TREES, 300, 16, seed=3, prior_scale=0.0)
    theirs = mctx_search(model, 32, 16, 0.97)(0.0)
    assert_equal(search_tables(model, replace(LIKE_MCTX, discount=0.97, wave=None)), theirs)


def test_priors_far_apart_equal_mctx() -> None:
    """Visited actions may have next to no prior probability (logits 60 apart)."""
    model = TabularModel.random(TREES, 60, 4, seed=5, prior_scale=20.0)
    theirs = mctx_search(model, 16, 4, 0.9)(0.0)
    settings = replace(LIKE_MCTX, num_simulations=16, max_considered=4, discount=0.9)
    assert_equal(search_tables(model, settings), theirs)
