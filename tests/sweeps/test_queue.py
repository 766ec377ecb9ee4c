"""The queue of trials: exact counts, whoever is killed when. Real storages, real processes, no training."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fork_server
import optuna
import pytest
from optuna.exceptions import StorageInternalError
from optuna.trial import Trial, TrialState
from sweep_helpers import claimed, environment, write

from ezm_pl.spec import SpecError
from ezm_pl.spec.sweep_plan import from_document, load_sweep
from ezm_pl.sweeps import queue as queue_module
from ezm_pl.sweeps import storage as storage_module
from ezm_pl.sweeps.queue import Queue, slot_of, stored_sweeps
from ezm_pl.sweeps.storage import open_storage
from ezm_pl.sweeps.worker import find_sweep

WORKER = """
import signal
import sys
from optuna.trial import TrialState
from ezm_pl.spec.sweep_plan import load_sweep
from ezm_pl.sweeps.queue import Queue
from ezm_pl.sweeps.storage import open_storage
queue = Queue(open_storage(sys.argv[1]), load_sweep("sweep.yaml"))
with queue.storage.alone():
    queue.fill()
print("ready", flush=True)
while (claim := queue.claim()) is not None:
    if sys.argv[2] == "hang":
        print("claimed", flush=True)
        signal.pause()
    assert queue.finish(claim, TrialState.COMPLETE, float(claim.slot))
    print(claim.point.label, claim.slot, claim.values["loss.value"], flush=True)
"""


def worker(folder: Path, url: str, how: str = "work") -> fork_server.Forked:
    """A process that takes trials without training anything."""
    command = ["-c", WORKER, url, how]
    return fork_server.start(command, cwd=folder, env=environment(), stdout=subprocess.PIPE)


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """A server of its own on a free port, run as a user that it accepts."""
    initdb = shutil.which("initdb") or next(
        (str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))), None
    )
    if initdb is None:
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    pytest.importorskip("psycopg")
    folder = Path(tempfile.mkdtemp(prefix="ezm-postgres-"))  # pytest's own folders are root's alone
    become: list[str] = []
    if os.getuid() == 0:  # which PostgreSQL refuses to run as
        become = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        os.chown(folder, 65534, 65534)
    data, control = folder / "data", Path(initdb).resolve().with_name("pg_ctl")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    quiet = {"stdout": subprocess.DEVNULL, "check": True, "cwd": folder}
    subprocess.run([*become, initdb, "-D", data, "-U", "ezm", "-A", "trust", "--no-sync"], **quiet)
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    subprocess.run(
        [*become, control, "-D", data, "-o", options, "-l", folder / "log", "-w", "-t", "120", "start"],
        **quiet,
    )
    try:
        yield f"postgresql://ezm@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*become, control, "-D", data, "-m", "fast", "-t", "120", "stop"], **quiet)
        shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, folder: Path) -> str:
    if request.param == "postgres":
        address: str = request.getfixturevalue("postgres")
        # One server for all tests: a sweep's name tells them apart.
        write(folder, name=f"tiny-{folder.name}"[:100].replace("[", "-").replace("]", "-"), trials=5)
        return address
    write(folder, trials=5)
    return f"sqlite:///{folder}/optuna.db"


def away(*arguments: object) -> None:
    """In place of a call that the storage does not answer."""
    raise StorageInternalError("connection refused")


def queue_of(folder: Path, url: str) -> Queue:
    queue = Queue(open_storage(url), load_sweep(folder / "sweep.yaml"))
    with queue.storage.alone():
        queue.fill()
    return queue


def ended(queue: Queue) -> Counter[tuple[str, int, str]]:
    return Counter(
        (point.label, slot_of(t), t.state.name) for point in queue.plan.points for t in queue.trials(point)
    )


def test_two_workers_that_start_at_once_share_exactly_what_was_asked(folder: Path, url: str) -> None:
    workers = [worker(folder, url) for _ in range(2)]
    done = [process.communicate(timeout=280)[0].splitlines() for process in workers]
    assert [process.returncode for process in workers] == [0, 0]
    lines = [line.split() for said in done for line in said if line != "ready"]
    queue = queue_of(folder, url)
    labels = [point.label for point in queue.plan.points]
    assert sorted((label, int(slot)) for label, slot, _ in lines) == [
        (x, s) for x in labels for s in range(5)
    ]
    assert ended(queue) == Counter((label, slot, "COMPLETE") for label in labels for slot in range(5))
    assert len({value for label, _, value in lines if label == labels[0]}) == 5


def test_the_trial_of_a_killed_worker_is_taken_over_at_once_and_once(folder: Path, url: str) -> None:
    queue = queue_of(folder, url)
    for attempt in (1, 2):
        process = worker(folder, url, "hang")
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["ready\n", "claimed\n"]
        process.send_signal(signal.SIGKILL)
        process.wait()
        (running,) = [t for t in queue.trials(queue.plan.points[0]) if t.state == TrialState.RUNNING]
        assert (slot_of(running), running.user_attrs["ezm:attempt"]) == (0, attempt)
    claim = claimed(queue)
    assert claim.slot == 0
    assert claim.point == queue.plan.points[1]
    assert ended(queue)[queue.plan.points[0].label, 0, "FAIL"] == 1


def test_a_silent_worker_s_trial_goes_back_and_its_late_result_does_not_count(
    folder: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = queue_of(folder, url)
    with monkeypatch.context() as patch:
        patch.setattr(queue_module, "this_place", lambda: "another machine")
        silent = claimed(queue)
    monkeypatch.setattr(queue.storage.optuna, "grace_period", 1)
    time.sleep(2.5)
    other = claimed(queue)
    assert (other.slot, other.point, other.attempt) == (silent.slot, silent.point, 2)
    assert other.values == silent.values
    assert not queue.finish(silent, TrialState.COMPLETE, 1e6)
    assert queue.finish(other, TrialState.COMPLETE, 0.5)
    assert queue.trials(other.point)[other.slot].value == 0.5


def test_a_worker_of_this_machine_keeps_its_trial_while_it_is_suspended(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its heartbeats are as old as after a night's sleep of the machine."""
    url = f"sqlite:///{folder}/optuna.db"
    queue = queue_of(folder, url)
    process = worker(folder, url, "hang")
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["ready\n", "claimed\n"]
    process.send_signal(signal.SIGSTOP)
    try:
        monkeypatch.setattr(queue.storage.optuna, "grace_period", 1)
        time.sleep(2.5)
        other = claimed(queue)
        assert (other.point, other.slot) == (queue.plan.points[1], 0)
        (running,) = [t for t in queue.trials(queue.plan.points[0]) if t.state == TrialState.RUNNING]
        assert running.user_attrs["ezm:attempt"] == 1
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_a_claim_that_the_storage_cut_short_is_no_attempt(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = queue_of(folder, f"sqlite:///{folder}/optuna.db")
    for _ in range(2):  # the second time it has had an owner
        with monkeypatch.context() as patch, pytest.raises(StorageInternalError):
            patch.setattr(Trial, "set_user_attr", away)
            queue.claim()
        claim = claimed(queue)
        assert (claim.point, claim.slot, claim.attempt) == (queue.plan.points[0], 0, 1)
        queue.give_back(claim)
        assert not queue.finish(claim, TrialState.COMPLETE, 1.0), "it has been given back"


def test_the_trial_of_an_earlier_process_of_this_number_is_taken_over(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after the restart of a container, whose worker always has the same number."""
    queue = queue_of(folder, f"sqlite:///{folder}/optuna.db")
    claim = claimed(queue)
    owner = claim.trial.user_attrs["ezm:owner"]
    claim.trial.set_user_attr("ezm:owner", {**owner, "began": owner["began"] - 100.0})
    again = claimed(queue)
    assert (again.point, again.slot, again.attempt) == (claim.point, claim.slot, 2)


def test_a_claim_whose_answer_was_lost_waits_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The storage took the owner, and the worker was not told so."""
    queue = queue_of(folder, f"sqlite:///{folder}/optuna.db")
    write_attribute = Trial.set_user_attr

    def unheard(*arguments: Any) -> None:
        write_attribute(*arguments)
        raise StorageInternalError("connection lost")

    with monkeypatch.context() as patch, pytest.raises(StorageInternalError):
        patch.setattr(Trial, "set_user_attr", unheard)
        queue.claim()
    claim = claimed(queue)
    assert (claim.point, claim.slot, claim.attempt) == (queue.plan.points[0], 0, 1)


def test_a_failure_that_the_storage_cut_short_counts_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = queue_of(folder, f"sqlite:///{folder}/optuna.db")
    claim = claimed(queue)
    with monkeypatch.context() as patch, pytest.raises(StorageInternalError):
        patch.setattr(Queue, "_wait_again", away)
        queue.fail(claim, "ValueError: no")
    assert not queue.fail(claim, "ValueError: no"), "it has a second attempt"
    again = claimed(queue)
    assert (again.slot, again.attempt) == (claim.slot, 2)


def test_a_trial_that_fails_is_tried_once_more(folder: Path) -> None:
    queue = queue_of(folder, f"sqlite:///{folder}/optuna.db")
    for attempt, over in ((1, False), (2, True)):
        claim = claimed(queue)
        assert (claim.slot, claim.point, claim.attempt) == (0, queue.plan.points[0], attempt)
        assert queue.fail(claim, "ValueError: no") is over
    assert queue.trials(queue.plan.points[0])[0].state == TrialState.FAIL
    following = claimed(queue)
    assert following.point == queue.plan.points[1]


def test_an_interrupted_trial_waits_again_and_that_is_no_attempt(folder: Path) -> None:
    queue = queue_of(folder, f"sqlite:///{folder}/optuna.db")
    for _ in range(3):
        claim = claimed(queue)
        assert (claim.slot, claim.attempt) == (0, 1)
        queue.give_back(claim)


def test_filling_that_was_cut_short_is_completed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enqueue, left = optuna.Study.enqueue_trial, iter([True, False])

    def dies(study: optuna.Study, *args: object, **kwargs: object) -> None:
        if not next(left):
            raise KeyboardInterrupt
        enqueue(study, *args, **kwargs)

    write(folder, trials=5)
    url = f"sqlite:///{folder}/optuna.db"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(optuna.Study, "enqueue_trial", dies)
        queue_of(folder, url)
    assert sum(ended(queue_of(folder, url)).values()) == 10


def test_another_spec_under_the_same_name_is_refused_with_what_changed(folder: Path) -> None:
    url = f"sqlite:///{folder}/optuna.db"
    queue_of(folder, url)
    write(folder, trials=3, seeds=2)
    with pytest.raises(SpecError) as error:
        queue_of(folder, url)
    lines = str(error.value).splitlines()
    assert [line.rpartition("spec: ")[2] for line in lines[:2]] == ["seeds: 1 -> 2", "trials: 2 -> 3"]


def test_a_worker_finds_the_stored_sweep(folder: Path) -> None:
    url = f"sqlite:///{folder}/optuna.db"
    plan = queue_of(folder, url).plan
    (folder / "base.yaml").unlink()
    stored = from_document(stored_sweeps(open_storage(url))[plan.key])
    assert (stored.points, stored.document()) == (plan.points, plan.document())


def test_a_sweep_that_cannot_be_read_is_in_the_way_of_no_other(folder: Path) -> None:
    url = f"sqlite:///{folder}/optuna.db"
    plan = queue_of(folder, url).plan
    storage = open_storage(url)
    damaged = plan.document() | {"name": "old", "experiment": {"optim": {"removed_field": 1}}}
    study = optuna.create_study(storage=storage.optuna, study_name="old smoke x: y")
    study.set_user_attr("ezm:key", "old smoke x")
    study.set_user_attr("ezm:plan", damaged)
    assert find_sweep(storage, "tiny", "there").points == plan.points
    with pytest.raises(SpecError, match=r"SWEEP 'old': .*removed_field: unknown key"):
        find_sweep(storage, "old", "there")
    study.set_user_attr("ezm:plan", plan.document() | {"name": "old"})
    with pytest.raises(SpecError, match=r"SWEEP 'old': another version began it as 'old smoke x', this one"):
        find_sweep(storage, "old", "there")


def test_a_missing_driver_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(
        SpecError, match=r"needs a driver that is not installed .*pip install 'ezm_pl\[postgres\]'"
    ):
        open_storage("postgresql://nobody:secret@127.0.0.1:1/nothing")


def test_a_server_that_does_not_answer_is_one_line_without_the_password() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(SpecError, match="cannot be opened") as error:
        open_storage("postgresql://nobody:secret@127.0.0.1:1/nothing")
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)
    assert storage_module.DEFAULT_STORAGE not in str(error.value)
