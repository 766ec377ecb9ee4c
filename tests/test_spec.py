"""Specs: what is wrong is said in one line that names the field, the value and what would be valid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ezm_pl.cli import main
from ezm_pl.spec import (
    HUMANOID_BENCH,
    PRESETS,
    SUITES,
    Experiment,
    SpecError,
    build_experiment,
    choose_preset,
    differences,
    dump_experiment,
    flatten,
    load_experiment,
    read_document,
)
from ezm_pl.spec.presets import merge
from ezm_pl.spec.sweep import point_label, point_tasks
from ezm_pl.spec.yaml_file import dump_yaml, parse_yaml

GOOD: dict[str, Any] = {"name": "trial", "preset": "smoke", "tasks": ["h1-stand", "h1-walk"]}


def write(folder: Path, document: Any) -> Path:
    path = folder / "spec.yaml"
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    return path


WRONG_FIELDS = {
    "unknown key": ({"modle": {}}, "modle: unknown key; did you mean 'model'? (valid: name, "),
    "unknown nested key": (
        {"model": {"latent": 3}},
        "model.latent: unknown key; did you mean 'latent_size'?",
    ),
    "unknown agent": ({"agent": "td3"}, "agent: 'ezm' or 'sac' expected, got 'td3'"),
    "a rate of nothing": ({"sac": {"target_rate": 0}}, "sac.target_rate: must be greater than 0, got 0"),
    "windows of SAC over a block": (
        {"agent": "sac", "sac": {"td_steps": 50}, "replay": {"block_size": 50}},
        "sac.td_steps 50 + 1 are more than a block holds (replay.block_size 50)",
    ),
    "text for a number": (
        {"model": {"latent_size": "big"}},
        "model.latent_size: a whole number expected, got 'big'",
    ),
    "quoted number": ({"seed": "3"}, "seed: a whole number expected, got '3'"),
    "switch for a number": ({"seed": True}, "seed: a whole number expected, got True"),
    "fraction of a unit": ({"env": {"num_envs": 2.5}}, "env.num_envs: a whole number expected, got 2.5"),
    "text for a switch": ({"eval": {"video": "maybe"}}, "eval.video: true or false expected, got 'maybe'"),
    "number for text": ({"name": 3}, "name: text expected, got 3"),
    "scalar for a section": ({"model": 3}, "model: a mapping of keys to values expected, got 3"),
    "zero size": ({"optim": {"batch_size": 0}}, "optim.batch_size: must be greater than 0, got 0"),
    "negative size": ({"env": {"num_envs": -3}}, "env.num_envs: must be greater than 0, got -3"),
    "not finite": ({"loss": {"value": float("inf")}}, "loss.value: a finite number expected, got inf"),
    "out of range": ({"targets": {"discount": 1.0}}, "targets.discount: must be less than 1, got 1.0"),
    "unknown choice": (
        {"env": {"protocol": "ez"}},
        "env.protocol: 'ezm' or 'humanoidbench' expected, got 'ez'",
    ),
    "unknown accelerator": ({"trainer": {"accelerator": "gpus"}}, "trainer.accelerator: 'auto', 'cpu', "),
    "no devices": ({"trainer": {"devices": 0}}, "trainer.devices: must be greater than 0, got 0"),
    "a list of devices": (
        {"trainer": {"devices": [1]}},
        "trainer.devices: a whole number or text expected, got [1]",
    ),
    "name with spaces": ({"name": "a b"}, "name: text matching "),
    "unknown preset": (
        {"preset": "pape"},
        "preset: 'pape' is not one of auto, paper, laptop, smoke; did you mean",
    ),
    "preset of another type": ({"preset": ["smoke"]}, "preset: ['smoke'] is not one of auto"),
    "unknown task": ({"tasks": ["h1-wlk"]}, "tasks: unknown task 'h1-wlk'; did you mean 'h1-walk'?"),
    "unknown suite": ({"tasks": "hb-mediun"}, "tasks: unknown task 'hb-mediun'; did you mean 'hb-medium'?"),
    "tasks without brackets": (
        {"tasks": "h1-walk,h1-run"},
        "tasks: unknown task 'h1-walk,h1-run'; write several as",
    ),
    "task twice": ({"tasks": ["h1-walk", "h1-walk"]}, "tasks: listed twice: h1-walk"),
    "no tasks": ({"tasks": []}, "tasks: no tasks given; name a suite such as 'hb-medium'"),
    "tasks of another type": (
        {"tasks": 3},
        "tasks: a suite such as 'hb-medium' or a list of task names expected, got 3",
    ),
    "batch below tasks": ({"optim": {"batch_size": 1}}, "optim.batch_size 1 is smaller than the 2 tasks"),
    "unroll over a block": (
        {"targets": {"unroll_steps": 60}},
        "targets.unroll_steps 60 + targets.td_steps 5 are more than a block holds (replay.block_size 50)",
    ),
    "unroll and return over a block": (
        {"targets": {"unroll_steps": 30, "td_steps": 30}},
        "targets.unroll_steps 30 + targets.td_steps 30 are more than a block holds",
    ),
    "seed over 63 bits": ({"seed": 2**63}, "seed: must be less than or equal to 9223372036854775807, got"),
    "capacity below a block": (
        {"replay": {"capacity": 10}},
        "replay.capacity 10 cannot hold one block of each",
    ),
    "random steps over budget": (
        {"collect": {"random_steps": 10_000}},
        "collect.random_steps 10000 must be below collect.env_steps 800",
    ),
    "log std bounds": (
        {"model": {"min_log_std": 3.0}},
        "model: min_log_std 3.0 must be below max_log_std 2.0",
    ),
    "password in the address": (
        {"tracking": {"uri": "postgresql://me:secret@host/db"}},
        "tracking.uri: holds a password, and specs are logged; set MLFLOW_TRACKING_URI instead",
    ),
}


@pytest.mark.parametrize(("change", "line"), WRONG_FIELDS.values(), ids=WRONG_FIELDS)
def test_wrong_field_is_one_line_and_exit_code_2(
    change: dict[str, Any], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, merge(GOOD, change))
    assert main(["validate", str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (only,) = printed.err.splitlines()
    assert only.startswith(f"ezm: {path}: {line}")
    assert "secret" not in only


def test_a_wrong_value_of_any_length_is_a_short_line() -> None:
    with pytest.raises(SpecError, match=r"^spec: seed: a whole number expected, got 'x") as error:
        build_experiment(GOOD | {"seed": "x" * 10_000})
    assert len(str(error.value)) < 200


WRONG_FILES = {
    "syntax": ("a: [1", "not valid YAML: line 1, column 6: expected ',' or ']'"),
    "tab": ("a:\n\tb: 1", "not valid YAML: line 2, column 1: found character '\\t'"),
    "key twice": ("name: a\nname: b\n", "not valid YAML: line 2, column 1: key 'name' appears twice"),
    "list": ("- 1", "a mapping of keys to values expected, got list"),
    "empty": ("", "a mapping of keys to values expected, got an empty file"),
    "no tasks": ("name: a", "tasks: is required"),
    "number as key": ("name: a\ntasks: hb-medium\n3: 4", "3: unknown key (keys are text)"),
}


@pytest.mark.parametrize(("text", "line"), WRONG_FILES.values(), ids=WRONG_FILES)
def test_wrong_file_is_one_line(text: str, line: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SpecError) as error:
        load_experiment(path)
    assert str(error.value).startswith(f"{path}: {line}")
    assert "\n" not in str(error.value)


NUMBERS = {
    "010": 10, "0100": 100, "-07": -7, "0o10": 8, "0x1f": 31, "1e3": 1000.0, "1e-3": 0.001, "+.5": 0.5,
    "1:30": "1:30", "1_000": "1_000", "0b11": "0b11", "yes": "yes", "off": "off", "2026-01-01": "2026-01-01",
    "true": True, "~": None, ".inf": float("inf"),
}  # fmt: skip
"""Plain scalars, and what YAML 1.2 reads them as."""


@pytest.mark.parametrize(("text", "value"), NUMBERS.items())
def test_scalars_are_those_of_yaml_1_2(text: str, value: object, tmp_path: Path) -> None:
    """In a file, in a setting, and read back from what was written."""
    path = write(tmp_path, f"seed: {text}")
    for document in (read_document(path), read_document(path, [f"seed={text}"])):
        assert document["seed"] == value and type(document["seed"]) is type(value)
    assert parse_yaml(dump_yaml({"seed": value}), source="test") == {"seed": value}


def test_text_stays_text_whatever_it_looks_like() -> None:
    """Whether YAML 1.2 reads what was written, or a reader of 1.1 does."""
    random = np.random.default_rng(0)
    characters = list("0123456789.:eExXoOb_-+~nNyYtTfF<=#!&* \n\t'\"é")
    texts = ["".join(random.choice(characters, random.integers(0, 6))) for _ in range(3000)]
    written = dump_yaml(texts)
    assert parse_yaml(written, source="test") == yaml.safe_load(written) == texts


@pytest.mark.parametrize(
    ("text", "line"),
    {
        "9" * 5000: "not valid YAML: Exceeds the limit",
        "[" * 5000: "not valid YAML: nested too deeply",
    }.items(),
    ids=["digits", "depth"],
)
def test_what_python_cannot_hold_is_one_line(text: str, line: str) -> None:
    with pytest.raises(SpecError) as error:
        parse_yaml(text, source="spec.yaml")
    assert str(error.value).startswith(f"spec.yaml: {line}")


def test_every_switch_is_strict() -> None:
    """Neither yes nor 1 is true, wherever true is expected."""
    fields = flatten(Experiment(name="trial", tasks=("h1-walk",)).model_dump())
    switches = [field for field, value in fields.items() if isinstance(value, bool)]
    assert len(switches) > 5
    for field in switches:
        for value in ("yes", "true", 1, 0.0):
            nested: Any = value
            for part in reversed(field.split(".")):
                nested = {part: nested}
            with pytest.raises(SpecError, match=f"{field}: true or false expected, got {value!r}"):
                build_experiment(merge(GOOD, nested))


def test_every_whole_number_has_a_largest_value() -> None:
    """What no memory, counter or timer holds is refused as a field, not met as an overflow in a run."""
    spec = {"name": "trial", "preset": "smoke", "tasks": ["dmc-cartpole-balance"]}
    fields = flatten(build_experiment(spec).model_dump(mode="json"))
    whole = [key for key, value in fields.items() if type(value) is int]
    assert len(whole) > 30
    for key in [*whole, "search.wave", "trainer.devices"]:
        section, _, name = key.rpartition(".")
        huge = {section: {name: 2**70}} if section else {name: 2**70}
        with pytest.raises(SpecError, match=rf"^spec: {key}: must be less than or equal to \d+, got 1180"):
            build_experiment({**spec, **huge})


def test_missing_file_offers_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text("")
    with pytest.raises(
        SpecError, match=r"quikstart\.yaml: no such file; did you mean '.*quickstart\.yaml'\?"
    ):
        load_experiment(tmp_path / "quikstart.yaml")
    with pytest.raises(SpecError, match="a folder; give a YAML file"):
        load_experiment(tmp_path)


def test_every_problem_has_its_own_line() -> None:
    with pytest.raises(SpecError) as error:
        build_experiment({**GOOD, "seed": -1, "optim": {"learning_rate": 0}}, source="spec.yaml")
    assert str(error.value).splitlines() == [
        "spec.yaml: seed: must be greater than or equal to 0, got -1",
        "spec.yaml: optim.learning_rate: must be greater than 0, got 0",
    ]


def test_settings_lie_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    settings = [
        "seed=7",
        "optim.learning_rate=1e-3",
        "tasks=[h1-run, h1-crawl]",
        "env.short_episode_steps=null",
    ]
    experiment = load_experiment(path, settings)
    assert experiment.seed == 7
    assert experiment.optim.learning_rate == 1e-3
    assert experiment.tasks == ("h1-run", "h1-crawl")
    assert experiment.env.short_episode_steps is None


@pytest.mark.parametrize("setting", ["seed", "=3", "model..blocks=1", "a.b=["])
def test_setting_that_is_no_setting(setting: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"^--set "):
        load_experiment(write(tmp_path, GOOD), [setting])


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_valid_and_round_trip(preset: str, tmp_path: Path) -> None:
    experiment = build_experiment({"name": "trial", "preset": preset, "tasks": "hb-medium"})
    assert experiment.preset == preset
    assert experiment.tasks == SUITES["hb-medium"]
    again = load_experiment(write(tmp_path, dump_experiment(experiment)))
    assert again == experiment
    assert differences(experiment, again) == []


def test_spec_keys_win_over_the_preset() -> None:
    experiment = build_experiment({**GOOD, "model": {"latent_size": 48}})
    assert experiment.model.latent_size == 48
    assert experiment.model.head_size == PRESETS["smoke"]["model"]["head_size"]


def test_auto_follows_the_hardware() -> None:
    document = {"name": "trial", "tasks": "hb-medium"}
    assert build_experiment(document, gpu=True).preset == choose_preset(gpu=True)[0] == "paper"
    assert build_experiment(document, gpu=False).preset == choose_preset(gpu=False)[0] == "laptop"


def test_published_sizes_are_the_defaults() -> None:
    experiment = Experiment(name="trial", tasks=("hb-medium",))
    assert (experiment.model.latent_size, experiment.model.task_embedding_size) == (512, 128)
    assert (experiment.search.num_simulations, experiment.search.num_root_actions) == (32, 16)
    assert (experiment.optim.total_updates, experiment.optim.final_updates) == (600_000, 20_000)


def test_differences_name_the_field_and_both_values() -> None:
    old = build_experiment(GOOD)
    new = build_experiment({**GOOD, "seed": 3, "eval": {"every": 7}})
    assert differences(old, new, ignore=["eval."]) == ["seed: 0 -> 3"]


def test_the_order_of_networks_makes_no_other_spec() -> None:
    first, second = (
        build_experiment({**GOOD, "model": {"task_embedding_in": networks}})
        for networks in (["dynamics", "representation"], ["representation", "dynamics"])
    )
    assert not differences(first, second)
    assert first.model.task_embedding_in == ("representation", "dynamics")


def test_nested_suites_are_prefixes_of_the_canonical_order() -> None:
    names = tuple(HUMANOID_BENCH)
    assert len(names) >= 34
    assert all(SUITES[f"hb-{n}"] == names[:n] for n in range(1, len(names) + 1) if n != 14)
    assert SUITES["hb-29"] == (*SUITES["hb-hard-20"], *SUITES["hb-medium"])
    assert SUITES["hb-all"] == names
    assert {*SUITES["hb-locomotion"], *SUITES["hb-manipulation"]} == {*names}


def test_the_fields_suite_of_h1_tasks_has_the_name_of_no_prefix() -> None:
    """`hb-14` is the 14 tasks without hands; 14 as a number of tasks is the first 14, `hb-hard`."""
    assert len(SUITES["hb-14"]) == 14
    assert all(HUMANOID_BENCH[task].action_size == 19 for task in SUITES["hb-14"])
    assert point_tasks(14) == SUITES["hb-hard"] == tuple(HUMANOID_BENCH)[:14]
    assert point_label(14) == "hb-hard" and point_label(16) == "hb-16"


@pytest.mark.parametrize(
    "path", sorted(Path(__file__).parents[1].glob("experiments/*.yaml")), ids=lambda p: p.stem
)
def test_shipped_experiments_are_valid(path: Path) -> None:
    assert load_experiment(path).name == path.stem.replace("_", "-")


@pytest.mark.parametrize(
    ("strategy", "reason"),
    [
        ("fsdp", "splits the weights over ranks"),
        ("deepspeed_stage_2", "splits the weights over ranks"),
        ("ddp_spawn", "ends its processes with every call of the Trainer"),
        ("nonsense", "is not known"),
    ],
)
def test_strategies_that_cannot_train_are_refused_with_the_reason(strategy: str, reason: str) -> None:
    with pytest.raises(SpecError) as caught:
        build_experiment({**GOOD, "trainer": {"strategy": strategy}})
    (line,) = str(caught.value).splitlines()
    assert "trainer.strategy" in line and reason in line and line.endswith("valid are auto and ddp")


def test_each_agent_has_windows_of_its_own() -> None:
    ezm, sac = (
        build_experiment({**GOOD, "agent": agent, "sac": {"td_steps": 3}}) for agent in ("ezm", "sac")
    )
    assert ezm.windows == ezm.targets
    assert (sac.windows.unroll_steps, sac.windows.td_steps, sac.windows.discount) == (1, 3, 0.97)
