"""The search in tree normalisation: by hand, against plain Python, and as a batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from search_models import FewBelowRoot, PlainSearch, SmoothModel, TabularModel, search_tables
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from ezm_pl.search import (
    DiscreteProposal,
    GaussianProposal,
    Proposal,
    SearchModel,
    SearchResult,
    SearchSettings,
    search,
)
from ezm_pl.spec.experiment import ModelSpec
from ezm_pl.world_model import InferenceModel, WorldModel

HALF = SearchSettings(discount=0.5, range_floor=0.01)


def chain(
    edges: dict[tuple[int, int], tuple[int, float]],
    values: list[float],
    actions: int,
    prior: list[float] | None = None,
) -> TabularModel:
    """One model from its edges: (state, action) -> (next state, reward); `prior` is the root's."""
    states = len(values)
    following = torch.zeros(1, states, actions, dtype=torch.long)
    reward = torch.zeros(1, states, actions)
    logits = torch.zeros(1, states, actions)
    for (state, action), (there, paid) in edges.items():
        following[0, state, action], reward[0, state, action] = there, paid
    if prior is not None:
        logits[0, 0] = torch.tensor(prior)
    return TabularModel(following, reward, torch.tensor([values], dtype=torch.float32), logits)


@pytest.mark.parametrize("wave", [None, 1])
def test_four_simulations_by_hand(wave: int | None) -> None:
    """Two actions, each visited at the root and once more one level down; discount 1/2.

    root (value 1): action 0 pays 1 to a state of value 2, q = 1 + 2/2 = 2;
                    action 1 pays 0 to a state of value 6, q = 0 + 6/2 = 3.
    Below the first: reward 4, value 8: return 4 + 8/2 = 8, mean (2 + 8)/2 = 5, q = 1 + 5/2 = 3.5.
    Below the second: reward -2, value 0: return -2, mean (6 - 2)/2 = 2, q = 0 + 2/2 = 1.
    Root: (1 + 2 + 3 + (1 + 8/2) + (0 - 2/2)) / 5 = 2. All Q seen: 2, 3, 8, 3.5, -2, 1.
    """
    model = chain(
        {(0, 0): (1, 1.0), (0, 1): (2, 0.0), (1, 0): (3, 4.0), (2, 0): (4, -2.0)}, [1, 2, 6, 8, 0], 2
    )
    result = search_tables(model, replace(HALF, num_simulations=4, wave=wave))
    torch.testing.assert_close(result.visits, torch.tensor([[2, 2]]))
    torch.testing.assert_close(result.q, torch.tensor([[3.5, 1.0]]))
    torch.testing.assert_close(result.value, torch.tensor([2.0]))
    torch.testing.assert_close(result.root_value, torch.tensor([1.0]))
    # sigma(q) = (50 + 2) * 0.1 * (q + 2) / 10
    scaled = 5.2 * torch.tensor([[5.5, 3.0]]) / 10
    torch.testing.assert_close(result.weights, scaled.softmax(-1))
    assert result.best.tolist() == [0]
    torch.testing.assert_close(result.action, torch.tensor([[1.0, 0.0]]))


def test_unvisited_actions_take_the_mixed_value_by_hand() -> None:
    """Priors 1/2, 0.3, 0.2 and two simulations: the third action keeps v_mix.

    q0 = 1 + 2/2 = 2, q1 = 0 + 6/2 = 3; mean (0.5 * 2 + 0.3 * 3) / 0.8 = 2.375;
    v_mix = (1 + 2 * 2.375) / 3 = 1.91666.
    """
    prior = torch.tensor([0.5, 0.3, 0.2]).log()
    model = chain({(0, 0): (1, 1.0), (0, 1): (2, 0.0), (0, 2): (3, 9.0)}, [1, 2, 6, 9], 3, prior.tolist())
    result = search_tables(model, replace(HALF, num_simulations=2, max_considered=2))
    assert result.visits.tolist() == [[1, 1, 0]]
    torch.testing.assert_close(result.q, torch.tensor([[2.0, 3.0, 5.75 / 3]]))
    # All Q seen are 2 and 3: v_mix below them counts as the smallest.
    torch.testing.assert_close(result.weights, (prior + 5.1 * torch.tensor([0.0, 1.0, 0.0])).softmax(0)[None])
    # 0.3 and a full sigma of 5.1 beat 0.5
    assert result.best.tolist() == [1]


def test_range_floor_by_hand() -> None:
    """Q of 2 and 2.001 are 0.001 apart: divided by the floor of 0.01, not by their range."""
    model = chain({(0, 0): (1, 1.0), (0, 1): (1, 1.001)}, [1, 2], 2)
    result = search_tables(model, replace(HALF, num_simulations=2))
    expected = (5.1 * torch.tensor([[0.0, 0.1]])).softmax(-1)
    torch.testing.assert_close(result.weights, expected, atol=1e-4, rtol=0)
    narrow = search_tables(model, replace(HALF, num_simulations=2, range_floor=1e-4))
    torch.testing.assert_close(narrow.weights, (5.1 * torch.tensor([[0.0, 1.0]])).softmax(-1))


@pytest.mark.parametrize("constants", [(50.0, 0.1), (10.0, 0.5), (0.0, 0.0)])
def test_sigma_constants_reach_the_weights(constants: tuple[float, float]) -> None:
    model = chain({(0, 0): (1, 1.0), (0, 1): (1, 3.0)}, [1, 2], 2)
    c_visit, c_scale = constants
    settings = replace(HALF, num_simulations=2, c_visit=c_visit, c_scale=c_scale)
    weights = search_tables(model, settings).weights
    expected = ((c_visit + 1) * c_scale * torch.tensor([[0.0, 1.0]])).softmax(-1)
    torch.testing.assert_close(weights, expected)


@pytest.mark.parametrize(("leaf_value", "deeper"), [(0.6, False), (10.0, True)])
def test_interior_choice_by_hand(leaf_value: float, deeper: bool) -> None:
    """The third simulation below a root action goes deeper only where Q is far enough ahead.

    Root -> c (reward 0, value 0) -> action 0: a leaf of reward 0 and value L. At c then q0 = L/2 and
    v_mix = (0 + q0)/2 = L/4 for action 1. The other root action has a Q of -3, so the Q of the tree lie
    in [-3, L/2]. Action 0 again iff p0 - 1/2 > p1, where p0 - p1 = tanh(d/2): d > ln 3 = 1.0986, with
    d = 5.1 * (L/4) / (3 + L/2). L = 0.6: d = 0.23, so action 1. L = 10: d = 1.59, so deeper.
    """
    edges = {(0, 0): (1, 0.0), (0, 1): (2, -3.0), (1, 0): (3, 0.0), (1, 1): (4, 0.0), (3, 0): (5, 1.0)}
    model = chain(edges, [0, 0, 0, leaf_value, 0, 0], 2)
    result = search_tables(model, replace(HALF, num_simulations=6))
    assert result.visits.tolist() == [[3, 3]]
    # c's returns: 0, L/2, and either 0 (state 4) or (1 + 0/2)/2 (state 5, below state 3).
    third = 0.5 if deeper else 0.0
    torch.testing.assert_close(result.q[0, 0], torch.tensor(0.5 * (0 + leaf_value / 2 + third) / 3))


@pytest.mark.parametrize("discount", [0.3, 1.0])
def test_discount_compounds_along_a_path(discount: float) -> None:
    """A single root candidate and chain: reward 1 on each edge, values 0; returns are partial sums."""
    edges = {(s, 0): (s + 1, 1.0) for s in range(4)}
    model = chain(edges, [0, 0, 0, 0, 0], 1)
    result = search_tables(model, replace(HALF, num_simulations=4, discount=discount))
    returns = [sum(discount**i for i in range(depth)) for depth in range(5)]
    torch.testing.assert_close(result.value, torch.tensor([sum(returns) / 5]))
    assert result.visits.tolist() == [[4]]


@pytest.mark.parametrize("wave", [None, 1, 3])
@pytest.mark.parametrize("prior_scale", [0.0, 1.0])
def test_equals_a_plain_search(wave: int | None, prior_scale: float) -> None:
    """Five shapes x 25 random models against one-node-at-a-time Python in double precision."""
    shapes = [(16, 2, 32, 16), (4, 4, 40, 16), (6, 3, 24, 3), (16, 2, 9, 16), (5, 1, 12, 5)]
    for actions, interior, simulations, considered in shapes:
        model = TabularModel.random(25, 150, actions, seed=actions + simulations, prior_scale=prior_scale)
        settings = SearchSettings(
            num_simulations=simulations, max_considered=considered, discount=0.95, wave=wave
        )
        proposal = FewBelowRoot(actions, interior_actions=interior)
        result = search_tables(model, settings, proposal)
        for index in range(model.models):
            plain = PlainSearch(model, index, settings, interior)
            visits = plain.counts(plain.root)
            assert result.visits[index].tolist() == visits
            q = torch.tensor(plain.completed(plain.root))
            torch.testing.assert_close(result.q[index], q, rtol=1e-4, atol=1e-4)
            value = plain.root.total / plain.root.visits
            assert float(result.value[index]) == pytest.approx(value, rel=1e-4, abs=1e-4)
            scores = torch.tensor(plain.scores(plain.root, 0, plain.low, plain.high))
            torch.testing.assert_close(result.weights[index], scores.softmax(-1), rtol=0, atol=1e-4)
            most = torch.tensor(visits) == max(visits)
            assert int(result.best[index]) == int(scores.masked_fill(~most, -torch.inf).argmax())


class GivenNoise(GaussianProposal):
    """Draws with noise given from outside, `root_noise` `[B, R, A]` and `below` `[B, slots, C, A]`."""

    root_noise: Tensor
    below: Tensor

    def root(
        self, model: Any, state: Tensor, task: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        return self.draw(model, state, task, self.root_noise, self.root_scales)

    def interior_noise(
        self, batch: int, slots: int, generator: torch.Generator, device: torch.device
    ) -> Tensor:
        return self.below


def given_noise(root_noise: Tensor, below: Tensor) -> GivenNoise:
    proposal = GivenNoise(3, (1.0,) * 4 + (3.0,) * 12, (1.0, 3.0))
    object.__setattr__(proposal, "root_noise", root_noise)
    object.__setattr__(proposal, "below", below)
    return proposal


@pytest.mark.parametrize("wave", [None, 1])
def test_roots_do_not_see_each_other(wave: int | None) -> None:
    """Nine roots of four tasks together, and one by one in another order: the same results."""
    model, settings = SmoothModel(), SearchSettings(wave=wave)
    generator = torch.Generator().manual_seed(3)
    observation = torch.randn(9, 6, generator=generator)
    task = torch.arange(9) % 4
    root_noise = torch.randn(9, 16, 3, generator=generator)
    below = torch.randn(9, settings.num_simulations + 1, 2, 3, generator=generator)
    together = search(model, given_noise(root_noise, below), observation, task, settings, generator)
    for index in reversed(range(9)):
        one = slice(index, index + 1)
        alone = search(
            model, given_noise(root_noise[one], below[one]), observation[one], task[one], settings, generator
        )
        torch.testing.assert_close(alone.visits[0], together.visits[index])
        torch.testing.assert_close(alone.q[0], together.q[index], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone.value[0], together.value[index], rtol=1e-4, atol=1e-5)
        assert alone.best[0] == together.best[index]


def test_task_reaches_every_network_call() -> None:
    """The same observation under another task gives another plan; the same task the same one."""
    model, settings = SmoothModel(), SearchSettings()
    noise = torch.randn(1, 16, 3).expand(4, -1, -1)
    below = torch.randn(1, settings.num_simulations + 1, 2, 3).expand(4, -1, -1, -1)
    observation = torch.randn(1, 6).expand(4, -1)
    generator = torch.Generator()
    task = torch.tensor([2, 0, 2, 1])
    result = search(model, given_noise(noise, below), observation, task, settings, generator)
    torch.testing.assert_close(result.q[0], result.q[2])
    assert not torch.allclose(result.q[0], result.q[1])
    assert not torch.allclose(result.q[1], result.q[3])


def test_fixed_generator_fixes_the_result() -> None:
    model, settings = SmoothModel(), SearchSettings(gumbel_scale=1.0)
    proposal = GaussianProposal.mixed(3, 16, 2, 0.25, 3.0)
    observation, task = torch.randn(5, 6), torch.zeros(5, dtype=torch.long)

    def run(seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        return search(model, proposal, observation, task, settings, generator)

    first, second, other = run(1), run(1), run(2)
    for name in ("actions", "visits", "q", "weights", "best", "action", "value"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    assert not torch.equal(first.actions, other.actions)


def test_gumbel_noise_changes_the_candidates_that_are_considered() -> None:
    model = TabularModel.random(300, 50, 8, seed=1, prior_scale=0.0)
    settings = SearchSettings(num_simulations=4, max_considered=4)
    quiet = search_tables(model, settings)
    loud = search_tables(model, replace(settings, gumbel_scale=1.0))
    assert (quiet.visits[:, :4] == 1).all() and (quiet.visits[:, 4:] == 0).all()
    # Equal logits and noise: each candidate is among the four considered half of the time.
    share = (loud.visits > 0).float().mean(0)
    torch.testing.assert_close(share, torch.full((8,), 0.5), atol=0.12, rtol=0)


class NoHostRoundTrip(TorchDispatchMode):
    """Fails where the host would wait for a device or where shapes depend on data.

    `lift_fresh` is `torch.tensor(...)` of Python numbers: on a GPU a blocking copy to the device.
    """

    FORBIDDEN = (
        "_local_scalar_dense",
        "item",
        "nonzero",
        "masked_select",
        "unique",
        "_unique2",
        "equal",
        "is_nonzero",
        "lift_fresh",
        "lift_fresh_copy",
    )

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        name = func.overloadpacket.__name__
        assert name not in self.FORBIDDEN, f"aten::{name} inside a search"
        if name in ("index", "index_put", "index_put_"):
            masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
            assert not masks, f"aten::{name} with a boolean mask inside a search"
        if name == "repeat_interleave":
            assert not isinstance(args[0], Tensor) or len(args) > 1, "repeats on the device"
        return func(*args, **(kwargs or {}))


def small_inference_model(tasks: int = 3) -> InferenceModel:
    spec = ModelSpec(
        latent_size=16, task_embedding_size=4, action_embedding_size=4, blocks=1, head_size=16, atoms=11
    )
    mask = torch.ones(tasks, 5)
    inference = InferenceModel(spec, 7, mask)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        source = WorldModel(spec, 7, mask)
        for head in (source.reward_head, source.value_heads, source.policy_head):
            torch.nn.init.normal_(head.weights[2])  # some start at zero
    inference.load(source)
    return inference


@pytest.mark.parametrize("wave", [None, 1])
@pytest.mark.parametrize("normalization", ["tree", "node"])
@pytest.mark.parametrize("kind", ["gaussian", "gaussian, oneDNN", "discrete"])
def test_host_never_waits_inside_a_search(
    wave: int | None, normalization: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither with BLAS products, as on a GPU, nor with oneDNN's."""
    settings = SearchSettings(
        num_simulations=12, max_considered=4, wave=wave, normalization=normalization, gumbel_scale=1.0
    )
    model: SearchModel
    proposal: Proposal
    if kind != "discrete":
        model, proposal = small_inference_model(), GaussianProposal.mixed(5, 16, 2, 0.25, 3.0)
        if "oneDNN" in kind:
            monkeypatch.setattr("ezm_pl.world_model.inference._BLAS_WIDTH", 0)
        observation = torch.randn(6, 7)
    else:
        model, proposal = TabularModel.random(3, 20, 4, seed=0), DiscreteProposal(4)
        observation = torch.zeros(6, 1)
    task = torch.arange(6) % 3
    search(model, proposal, observation, task, settings, torch.Generator())  # constants reach the device
    mode = NoHostRoundTrip()
    with mode:
        search(model, proposal, observation, task, settings, torch.Generator())
    assert mode.calls > 100


def test_the_check_for_host_round_trips_can_fail() -> None:
    x = torch.arange(3)
    for wait in (lambda: x.max().item(), lambda: x[x > 1], lambda: x.nonzero(), lambda: torch.tensor([1.0])):
        with pytest.raises(AssertionError), NoHostRoundTrip():
            wait()


class AsGiven(GaussianProposal):
    """The Gaussian proposal with its noise read from the end of the observation, not drawn."""

    def root(
        self, model: Any, state: Tensor, task: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, None]:
        noise = self.given[:, : 16 * 5].view(-1, 16, 5)
        return self.draw(model, state, task, noise, self.root_scales)

    def interior_noise(
        self, batch: int, slots: int, generator: torch.Generator, device: torch.device
    ) -> Tensor:
        return self.given[:, 16 * 5 :].view(batch, slots, 2, 5)

    given: Tensor


@pytest.mark.parametrize("kind", ["BLAS", "oneDNN"])
@pytest.mark.parametrize("settings", [SearchSettings(), SearchSettings(16, 8), SearchSettings(12, 4, wave=1)])
def test_a_search_is_one_static_program(
    settings: SearchSettings, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced once, with all that Python decides: the same operations give the results of other inputs."""
    monkeypatch.setattr("ezm_pl.world_model.inference._BLAS_WIDTH", 0 if kind == "oneDNN" else 256)
    model, slots = small_inference_model(), settings.num_simulations + 1
    task, generator = torch.arange(6) % 3, torch.Generator()

    def run(observation: Tensor, task: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        proposal = AsGiven.mixed(5, 16, 2, 0.25, 3.0)
        object.__setattr__(proposal, "given", noise)
        return tuple(vars(search(model, proposal, observation, task, settings, generator)).values())

    def inputs(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(6, 16 * 5 + slots * 2 * 5, generator=generator)
        return torch.randn(6, 7, generator=generator) * 3, task.roll(seed), noise

    run(*inputs(0))  # constants
    traced = make_fx(run)(*inputs(0))
    visits = set()
    for seed in range(1, 6):
        given = inputs(seed)
        expected = run(*given)
        for name, found, target in zip(
            SearchResult.__dataclass_fields__, traced(*given), expected, strict=True
        ):
            torch.testing.assert_close(found, target, rtol=0, atol=0, msg=name)
        visits |= {tuple(row) for row in expected[1].tolist()}
    assert len(visits) > 4  # the trees differ


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("wave", [None, 1])
def test_no_cuda_synchronisation_inside_a_search(wave: int | None) -> None:
    model = small_inference_model().cuda()
    proposal = GaussianProposal.mixed(5, 16, 2, 0.25, 3.0)
    observation, task = torch.randn(6, 7, device="cuda"), torch.arange(6, device="cuda") % 3
    generator = torch.Generator("cuda").manual_seed(0)
    settings = SearchSettings(wave=wave, gumbel_scale=1.0)
    search(model, proposal, observation, task, settings, generator)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        search(model, proposal, observation, task, settings, generator)
    finally:
        torch.cuda.set_sync_debug_mode("default")
