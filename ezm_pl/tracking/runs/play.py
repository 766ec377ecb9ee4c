"""`ezm play`: an agent at work, as a film or a page, by task or told in words what to do."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ezm_pl.envs import RenderingUnavailable
from ezm_pl.envs.rendering import require
from ezm_pl.selfplay import Actor
from ezm_pl.spec import Experiment, SpecError, as_spec_error, writing
from ezm_pl.spec.descriptions import check_encoder
from ezm_pl.spec.errors import nearest
from ezm_pl.tracking.console import say
from ezm_pl.tracking.results.live_page import HOST, serve_page
from ezm_pl.tracking.results.play_frames import draw_moment
from ezm_pl.tracking.results.videos import write_video
from ezm_pl.tracking.runs.run_lookup import usable_checkpoint
from ezm_pl.training.agent_module import AgentModule
from ezm_pl.training.from_checkpoint import described_tasks, load_module
from ezm_pl.training.playing import play
from ezm_pl.training.sentences import embed_sentences

_SHOWN = 5
"""Known descriptions that are named beside a sentence."""


@dataclass(frozen=True)
class Cast:
    """Who plays what.

    Attributes:
        experiment: that it was trained by.
        actor: the network that decides.
        tasks: that are played, in turn.
    """

    experiment: Experiment
    actor: Actor
    tasks: tuple[str, ...]


def film_run(
    reference: str,
    out: Path,
    *,
    task: str | None,
    sentence: str | None,
    seconds: float,
    seed: int,
    console: Console,
) -> None:
    """Films the beginning of an episode, with what the search considered beside it.

    Args:
        reference: `last`, a run id, a run folder or a checkpoint.
        out: the film.
        task: that is played; None: the one whose description is nearest to `sentence`, or the first.
        sentence: what the agent is told in place of the task's description.
        seconds: of simulated time, at most.
        seed: of the episode and the search.
        console: where to print.

    Raises:
        SpecError: no such run or task, nothing can be rendered, `out` cannot be written, or `sentence` is
            given to an agent that knows its tasks by their ids.
    """
    cast = _cast(reference, task, sentence, console)
    experiment, name = cast.experiment, cast.tasks[0]
    pictures, interval = [], 0.0
    with as_spec_error(RenderingUnavailable):
        for moment in play(experiment, cast.actor, name, seed=seed):
            pictures.append(draw_moment(moment, name, sentence))
            interval = interval or moment.seconds
            if moment.seconds >= seconds:
                break
    if not pictures:
        raise SpecError(f"{name}: the episode ended with its first decision; there is nothing to film")
    with writing(out):
        write_video(pictures, out, fps=1 / interval)
    fell = ", has fallen" if moment.fell else ""
    say(console, f"{name}: return {moment.total:.1f} after {moment.seconds:.1f} s{fell}")
    say(console, f"wrote {out}")


def show_run(
    reference: str, port: int, *, task: str | None, sentence: str | None, seed: int, console: Console
) -> None:
    """Shows episode after episode on a page of this machine, not faster than in life, until Ctrl-C.

    Arguments and errors as `film_run`; without `task` and `sentence` the tasks take turns.
    """
    cast = _cast(reference, task, sentence, console)
    with serve_page(port) as page, as_spec_error(RenderingUnavailable):
        say(console, f"http://{HOST}:{port}  (Ctrl-C ends it)")
        for episode, name in enumerate(itertools.cycle(cast.tasks)):
            began = time.monotonic()
            for moment in play(cast.experiment, cast.actor, name, seed=seed + episode):
                page.show(draw_moment(moment, name, sentence))
                time.sleep(max(0.0, began + moment.seconds - time.monotonic()))


def _cast(reference: str, task: str | None, sentence: str | None, console: Console) -> Cast:
    if sentence is not None:
        check_encoder("--say")
    with as_spec_error(RenderingUnavailable):
        require()
    checkpoint = usable_checkpoint(reference, console)
    experiment, module, updates, _ = load_module(checkpoint)
    if task is not None and task not in experiment.tasks:
        raise SpecError(
            f"--task {task}: the agent was trained on {', '.join(experiment.tasks)}"
            f"{nearest(task, experiment.tasks)}"
        )
    say(console, f"{checkpoint}: {updates:,} updates")
    if sentence is not None:
        return _told(experiment, module, task, sentence, console)
    return Cast(experiment, module.trained_actor(), (task,) if task else experiment.tasks)


def _told(
    experiment: Experiment, module: AgentModule, task: str | None, sentence: str, console: Console
) -> Cast:
    """Gives all tasks the embedding of `sentence`; prints the descriptions that it is nearest to."""
    named, described = described_tasks(module, "--say")
    known = [(name, text) for name, each in experiment.descriptions.items() for text in each.training]
    vectors = embed_sentences([sentence, *(text for _, text in known)])
    similarity = (vectors[1:] @ vectors[0]).tolist()
    order = sorted(range(len(known)), key=lambda index: -similarity[index])
    table = Table("similarity", "task", "description", title=escape(f"nearest to “{sentence}”"))
    for index in order[:_SHOWN]:
        table.add_row(f"{similarity[index]:.2f}", *map(escape, known[index]))
    console.print(table)
    with_sentence = described.embed(vectors[0].to(described.centre.device))
    actor = named.trained_actor(with_sentence.expand(len(experiment.tasks), -1))
    return Cast(experiment, actor, (task or known[order[0]][0],))
