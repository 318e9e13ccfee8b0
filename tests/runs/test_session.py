"""The command line and the notebooks open a run with the settings of its finished stages."""

import json
from dataclasses import asdict

import pytest

from grpo_kit import config
from grpo_kit.runs import session
from grpo_kit.runs.files import write_text
from grpo_kit.runs.run import find_run


@pytest.fixture
def half_done(tmp_path, monkeypatch):
    """A run whose data was made from mine.csv."""
    monkeypatch.setenv("GRPO_KIT_ROOT", str(tmp_path))
    chosen = config.load_config(["tiny"], ["data.source=mine.csv", "grpo.max_steps=7"])
    run = find_run("r", tmp_path)
    run.record_stage("data", {"data": asdict(chosen.data), "seed": 1}, [], [], 3.0, config.to_yaml(chosen))
    return run


def test_without_sources_the_runs_own_configuration_is_used(half_done):
    settings, run = session.open_run(name="r", stage="train")
    assert (settings.grpo.max_steps, settings.data.source, run.name, settings.run.name) == (7, "mine.csv", "r", "r")


def test_a_preset_replaces_all_but_the_settings_of_finished_stages(half_done):
    settings, _ = session.open_run(["t4"], ["grpo.max_steps=2"], "r", "train")
    assert (settings.grpo.max_steps, settings.data.source, settings.policy.dtype) == (2, "mine.csv", "float16")


def test_opening_a_run_for_the_data_stage_ignores_the_finished_data_settings(half_done):
    settings, _ = session.open_run(["tiny"], [], "r", "data")
    assert settings.data.source == "tiny-sums"


def test_without_a_stage_the_settings_of_finished_stages_are_kept(half_done):
    assert session.open_run(["tiny"], [], "r")[0].data.source == "mine.csv"
    assert session.open_run(["tiny"], ["data.source=other.csv"], "r")[0].data.source == "other.csv"


def test_a_new_run_takes_the_tiny_preset_and_creates_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("GRPO_KIT_ROOT", str(tmp_path / "runs"))
    settings, run = session.open_run(name="new")
    assert settings.policy.model == "tiny" and not run.root.exists()


def test_force_is_for_this_call(half_done):
    assert session.open_run(name="r", force=True)[0].run.force
    assert not session.open_run(name="r")[0].run.force


def test_the_description_of_a_run_names_every_stage(half_done):
    lines = session.describe_run(half_done).splitlines()
    assert len(lines) == 6 and "done" in lines[1] and all("not yet" in line for line in lines[2:])


def test_settings_of_a_screening_are_kept_beside_those_of_its_data(half_done):
    settings = {"data": {"pass_rate": [0.2, 0.8]}, "screening": {"sigma": 0.5}, "seed": 1}
    half_done.record_stage("screen", settings, [], [], 1.0, config.to_yaml(config.load_config(["tiny"])))
    loaded, _ = session.open_run(["tiny"], [], "r", "train")
    assert (loaded.data.source, loaded.data.pass_rate, loaded.screening.sigma) == ("mine.csv", [0.2, 0.8], 0.5)
    assert session.open_run(["tiny"], ["screening.sigma=0"], "r", "train")[0].screening.sigma == 0
    assert session.open_run(["tiny"], [], "r", "screen")[0].data.pass_rate == [0.1, 0.9]
    assert "screen  done" in session.describe_run(half_done)


def damage_settings(run, change):
    """Change the text of the run's `config.yaml`."""
    run.config.write_bytes(change(run.config.read_bytes()))


@pytest.mark.slow
@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda text: b"", "config.yaml is damaged: policy.model is missing."),
        (lambda text: text[: text.index(b"grpo:")], "config.yaml is damaged: grpo.max_steps is missing."),
        (lambda text: text[: text.rindex(b"  report_to")], "config.yaml is damaged: run.report_to is missing."),
        (lambda text: text[: len(text) // 2 + 3], "config.yaml"),
        (
            lambda text: text.replace(b"max_steps", b"max_stfps"),
            r"config.yaml, line \d+: grpo.max_stfps is not a key",
        ),
        (
            lambda text: text.replace(b"seed: 3", b"seed: x3"),
            r"config.yaml, line \d+: run.seed is 'x3407'; it",
        ),
        (lambda text: text.replace(b"seed", b"se\xffd"), "config.yaml is not readable YAML"),
        (lambda text: b"[1, 2]", "config.yaml is not a mapping"),
        (lambda text: b"[" * 100_000, "config.yaml is not readable YAML"),
        (lambda text: b"#" * (2 << 20), "config.yaml has more than 1048576 bytes"),
    ],
)
def test_damaged_settings_are_named_and_never_replaced_by_a_preset(half_done, change, sentence):
    damage_settings(half_done, change)
    with pytest.raises(
        ValueError,
        match=f"{sentence}.* Put back a copy of it, or let `grpo-kit",
    ):
        session.open_run(name="r", stage="train")
    assert session.open_run("tiny", name="r", stage="train")[0].data.source == "mine.csv"  # the remedy


@pytest.mark.parametrize("put", [lambda path: None, lambda path: path.mkdir()])
def test_missing_settings_are_named_and_never_replaced_by_a_preset(half_done, put):
    half_done.config.unlink()
    put(half_done.config)
    with pytest.raises(
        ValueError, match="config.yaml, which has the settings of run 'r', is (gone|a folder). Put back"
    ):
        session.open_run(name="r", stage="train")


def test_settings_of_an_earlier_version_may_lack_new_keys(half_done):
    record = json.loads(half_done.notes.read_text())
    del record["config"]
    half_done.notes.write_text(json.dumps(record))
    damage_settings(half_done, lambda text: text.replace(b"  time_limit: null\n", b""))
    assert session.open_run(name="r")[0].grpo.max_steps == 7
    damage_settings(half_done, lambda text: text[: text.index(b"run:")])
    with pytest.raises(ValueError, match="config.yaml is damaged: run.name is missing"):
        session.open_run(name="r")


@pytest.mark.slow
def test_a_training_that_was_interrupted_keeps_its_settings(half_done):
    run, open_run = half_done, session.open_run
    write_text(run.path / "checkpoints/step_90/kept.json", json.dumps({"settings": {"grpo": {"max_steps": 200}}}))
    assert open_run(name="r", stage="train")[0].grpo.max_steps == 200
    assert open_run(name="r", stage="train", overrides="grpo.max_steps=9")[0].grpo.max_steps == 9
    assert open_run("tiny", name="r", stage="train")[0].grpo.max_steps == 30  # the training then names the difference
    for damage in ("", "[]", '{"settings": 1}'):
        write_text(run.path / "checkpoints/step_90/kept.json", damage)
        assert open_run(name="r", stage="train")[0].grpo.max_steps != 200
