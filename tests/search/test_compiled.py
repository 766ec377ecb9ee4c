"""A search as one C++ program: equal results for any roots, weights, value heads and generator."""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from test_tree import small_inference_model

from ezm_pl.programs import program as of_programs
from ezm_pl.search import Planner, SearchResult
from ezm_pl.search import compiled as of_searches
from ezm_pl.search.compiled import CompiledSearch
from ezm_pl.search.make_program import Searching
from ezm_pl.spec.experiment import SearchSpec
from ezm_pl.world_model import InferenceModel

SPEC = SearchSpec(num_simulations=8, num_root_actions=4, mode_candidate=True, correct_proposal=True)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def plan(planner: Planner, model: InferenceModel, roots: int, seed: int) -> tuple[SearchResult, torch.Tensor]:
    """A search from random observations, and the generator's state after it."""
    observation = torch.randn(roots, 7, generator=torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed)
    return planner(model, observation, torch.arange(roots) % 3, generator), generator.get_state()


def program_of(planner: Planner, model: InferenceModel) -> Any:
    assert isinstance(planner.compiled, CompiledSearch)
    dtype = model.compiled_dtype(4)
    assert dtype is not None
    return planner.compiled._program(model, dtype)


def change(model: InferenceModel, seed: int) -> None:
    """Other weights, each moved a little, and other value heads."""
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: x + 0.05 * torch.randn(x.shape, generator=generator) if x.is_floating_point() else x
        for name, x in model.state_dict().items()
    }
    model.load_state_dict(state)
    model.draw_heads(torch.Generator().manual_seed(seed))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_compiled_search_finds_the_same_and_is_loaded_the_next_time() -> None:
    plain, compiled = (Planner(SPEC.model_copy(update={"compiled": c}), 0.97, 5) for c in (False, True))
    model = small_inference_model()
    assert compiled.compiled is not None and compiled.compiled.wait(model, 4)
    seen = []
    for seed in range(3):
        for roots in (1, 3, 1, 5):
            expected, state = plan(plain, model, roots, seed)
            plan(compiled, model, roots, seed)  # the first of so many roots notes what is drawn
            found, state_after = plan(compiled, model, roots, seed)
            assert torch.equal(found.visits, expected.visits) and torch.equal(found.best, expected.best)
            for name in ("actions", "q", "action", "value", "root_value"):
                a, b = getattr(found, name), getattr(expected, name)
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, msg=name)
            # The proposal's density is that of atanh(action), which near +-1 multiplies rounding by 500.
            torch.testing.assert_close(found.weights, expected.weights, rtol=1e-2, atol=1e-3)
            assert torch.equal(state, state_after) and not found.q.is_inference()
        seen.append(found.q)
        change(model, seed)
    assert not torch.allclose(seen[0], seen[1]) and not torch.allclose(seen[1], seen[2])

    again, other = Planner(SPEC, 0.97, 5), small_inference_model()
    begin = time.perf_counter()
    plan(again, other, 1, 0)
    later = program_of(again, other)
    assert later.wait()
    assert time.perf_counter() - begin < 20


@pytest.mark.parametrize("roots", [1, 4, 9, 10])
def test_many_roots_are_searched_in_parts(roots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of at most four roots find what one search of all finds, with the same draws."""
    plain, compiled = (Planner(SPEC.model_copy(update={"compiled": c}), 0.97, 5) for c in (False, True))
    model, sizes = small_inference_model(), []
    program = program_of(compiled, model)
    searching = Searching(program.spec)

    def run(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        sizes.append(len(inputs[0]))
        return list(searching(*inputs))

    monkeypatch.setattr(of_searches, "MOST", 4 * 4 * 16)
    assert compiled.compiled is not None and compiled.compiled._width == 4
    plan(compiled, model, roots, 0)  # the first of so many roots notes what is drawn
    monkeypatch.setattr(program, "run", run)
    expected, state = plan(plain, model, roots, 0)
    found, state_after = plan(compiled, model, roots, 0)
    assert sizes == {1: [1], 4: [4], 9: [3, 3, 3], 10: [4, 4, 2]}[roots]
    for name, tensor in vars(expected).items():
        torch.testing.assert_close(getattr(found, name), tensor, rtol=1e-4, atol=1e-4, msg=name)
    assert torch.equal(state, state_after)


def test_without_a_compiler_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(of_programs, "EARNED", 0.0)
    plain, compiled = (Planner(SPEC.model_copy(update={"compiled": c}), 0.97, 5) for c in (False, True))
    model = small_inference_model()
    with caplog.at_level(logging.WARNING, "ezm_pl"):
        for seed in range(3):
            found, state = plan(compiled, model, 3, seed)
            assert not program_of(compiled, model).wait()
            expected, state_expected = plan(plain, model, 3, seed)
            assert torch.equal(found.weights, expected.weights) and torch.equal(state, state_expected)
    assert [r.message for r in caplog.records] == ["searches are not compiled: no C++ compiler was found"]


def test_a_cache_folder_that_cannot_be_written_to_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(of_programs, "EARNED", 0.0)
    planner, model = Planner(SPEC, 0.97, 5), small_inference_model()
    plan(planner, model, 3, 0)
    assert not program_of(planner, model).wait()
    plan(planner, model, 3, 0)
    assert len(caplog.records) == 1
    assert caplog.records[0].message.startswith("searches are not compiled: NotADirectoryError: ")


def test_a_program_that_others_can_write_to_is_not_loaded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A maker that leaves it as it is, and its folder too."""
    monkeypatch.setattr(of_programs, "make", lambda spec: None)
    monkeypatch.setattr(of_programs, "Library", lambda path: pytest.fail("it was loaded"))
    planner, model = Planner(SPEC, 0.97, 5), small_inference_model()
    program = program_of(planner, model)
    program.spec.path.parent.mkdir()
    program.spec.path.write_bytes(b"native code")
    program.spec.path.chmod(0o666)
    assert not program.wait()
    (line,) = (record.message for record in caplog.records)
    assert line == f"searches are not compiled: others can write to {program.spec.path.parent}"


def test_quiet_evaluation_has_a_program_of_its_own() -> None:
    model, spec = small_inference_model(), SPEC.model_copy(update={"evaluation_std": 0.5})

    def path(spec: SearchSpec, evaluation: bool) -> Path:
        return program_of(Planner(spec, 0.97, 5, evaluation=evaluation), model).spec.path

    assert path(SPEC, True) == path(SPEC, False)
    assert path(spec, True) != path(spec, False)


def test_short_runs_and_deterministic_ones_make_no_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []
    monkeypatch.setattr(of_programs, "make", asked.append)
    planner, model = Planner(SPEC, 0.97, 5), small_inference_model()
    for seed in range(3):
        plan(planner, model, 3, seed)
    assert not asked
    monkeypatch.setattr(of_programs, "EARNED", 0.0)
    torch.use_deterministic_algorithms(True)
    try:
        plan(planner, model, 3, 0)
    finally:
        torch.use_deterministic_algorithms(False)
    assert not asked
    plan(planner, model, 3, 0)
    program = program_of(planner, model)
    program.wait()
    assert asked == [program.spec]
