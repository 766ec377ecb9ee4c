"""`ezm play`: a film with what the search considered, an agent told what to do, a page that shows it live."""

from __future__ import annotations

import io
import itertools
import socket
import urllib.error
import urllib.request
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from ezm_pl.cli import main
from ezm_pl.envs.rendering import HEIGHT, WIDTH, rendering_available
from ezm_pl.spec import SpecError
from ezm_pl.tracking.results.live_page import serve_page
from ezm_pl.tracking.results.play_frames import _CHOSEN, _FELL, PANEL, draw_moment
from ezm_pl.tracking.runs.play import _cast
from ezm_pl.training.from_checkpoint import load_actor, load_module
from ezm_pl.training.playing import Moment, play
from ezm_pl.training.sentences import embed_sentences

renders = pytest.mark.skipif(not rendering_available()[0], reason=rendering_available()[1])
BALANCE, SWINGUP = "dmc-cartpole-balance", "dmc-pendulum-swingup"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def moment(**other: object) -> Moment:
    shown = {
        "frame": np.zeros((HEIGHT, WIDTH, 3), np.uint8),
        "seconds": 1.0,
        "reward": 0.5,
        "total": 20.0,
        "fell": False,
        "q": np.array([1.0, 3.0, 2.0], np.float32),
        "visits": np.array([1, 4, 0]),
        "chosen": 1,
    }
    return Moment(**(shown | other))  # type: ignore[arg-type]


def widest(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    """The longest row of pixels of a colour."""
    return int((picture == np.array(colour)).all(-1).sum(1).max())


def test_the_chosen_candidates_bar_is_as_long_as_its_value() -> None:
    best, middle, least = (
        widest(draw_moment(moment(chosen=index), "a task"), _CHOSEN) for index in (1, 2, 0)
    )
    assert best > 1.8 * middle > 3 * least > 0
    assert widest(draw_moment(moment(chosen=None, q=np.zeros(0)), "a task"), _CHOSEN) == 0


def test_a_fall_and_a_sentence_are_drawn() -> None:
    plain = draw_moment(moment(), "a task")
    assert plain.shape == (HEIGHT, WIDTH + PANEL, 3)
    assert widest(plain, _FELL) == 0 < widest(draw_moment(moment(fell=True), "a task"), _FELL)
    told = draw_moment(moment(), "a task", "walk slowly forward " * 20)
    changed = (told != plain).any(-1)
    assert changed[-100:, :WIDTH].any() and not changed[:100].any()


@renders
def test_moments_are_those_of_the_search(id_checkpoint: Path) -> None:
    experiment, actor, _, _ = load_actor(id_checkpoint)
    seen = list(itertools.islice(play(experiment, actor, SWINGUP, seed=0), 4))
    assert [each.seconds for each in seen] == pytest.approx([1.0, 2.0, 3.0, 4.0])  # 50 steps of 20 ms
    assert [each.total for each in seen] == pytest.approx(np.cumsum([each.reward for each in seen]))
    for each in seen:
        assert each.q.shape == each.visits.shape == (experiment.search.num_root_actions,)
        assert each.chosen is not None and each.visits[each.chosen] == each.visits.max()
        assert each.frame.shape == (HEIGHT, WIDTH, 3) and each.frame.any()
    without = experiment.model_copy(
        update={"search": experiment.search.model_copy(update={"choice": "policy"})}
    )
    alone = next(play(without, actor, SWINGUP, seed=0))
    assert alone.chosen is None and not len(alone.q)


@renders
def test_a_film(id_checkpoint: Path, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    film = ["play", str(id_checkpoint), "--task", SWINGUP, "--seconds", "3", "--out", "swing.mp4"]
    assert main(film) == 0
    assert f"{SWINGUP}: return" in capsys.readouterr().out
    frames = imageio.imread(workplace / "swing.mp4", plugin="FFMPEG")
    assert frames.shape == (3, HEIGHT, WIDTH + PANEL, 3)
    assert main(["play", str(id_checkpoint), "--task", "dmc-pendulum-swing"]) == 2
    assert f"did you mean '{SWINGUP}'?" in capsys.readouterr().err


@renders
@pytest.mark.usefixtures("encoder")
def test_ids_cannot_be_told(id_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["play", str(id_checkpoint), "--say", "swing up"]) == 2
    said = capsys.readouterr().err
    assert said == "ezm: --say needs an agent that was trained with model.task_conditioning: text\n"


def test_without_rendering_it_is_one_line(
    id_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ezm_pl.envs import rendering

    monkeypatch.setenv("MUJOCO_GL", "off")
    rendering._chosen_backend.cache_clear()
    assert main(["play", str(id_checkpoint)]) == 2
    assert capsys.readouterr().err == "ezm: rendering is switched off (MUJOCO_GL=off)\n"
    monkeypatch.undo()
    rendering._chosen_backend.cache_clear()


@renders
def test_an_agent_is_told(checkpoint: Path, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "keep the  standing pole from falling over"
    assert main(["play", str(checkpoint), "--say", text, "--seconds", "2", "--out", "told.mp4"]) == 0
    printed = capsys.readouterr().out
    assert "nearest to “keep the standing pole from falling over”" in printed
    assert f"{BALANCE}: return" in printed, "the task of the nearest description"
    assert (workplace / "told.mp4").is_file()
    cast = _cast(str(checkpoint), SWINGUP, text, Console(quiet=True))
    assert cast.tasks == (SWINGUP,)
    described = load_module(checkpoint)[1].smoothed.described  # type: ignore[union-attr]
    assert described is not None
    expected = described.embed(embed_sentences([text])[0])
    for row in cast.actor.model.task_embedding:  # type: ignore[union-attr]
        torch.testing.assert_close(row.float(), expected, atol=1e-2, rtol=1e-2)  # of bfloat16, perhaps


def test_a_page_shows_pictures_as_they_come() -> None:
    port = free_port()
    with serve_page(port) as page:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
            assert b'<img src="/film"' in answer.read()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/film") as film:
            page.show(draw_moment(moment(), "a task"))
            while line := film.readline().strip():
                if line.startswith(b"Content-Length"):
                    size = int(line.split()[1])
            with Image.open(io.BytesIO(film.read(size))) as picture:
                assert picture.size == (WIDTH + PANEL, HEIGHT)
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/other")
        with pytest.raises(SpecError, match=f"--port {port}"), serve_page(port):
            pass
