"""What `run.report_to` names is checked before training, and TensorBoard's files lie in the run."""

import sys

import pytest

from grpo_kit import config
from grpo_kit.training import trackers
from grpo_kit.training.trl_settings import make_trl_config


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["mlflow"], "'mlflow'; it takes tensorboard, wandb, trackio"),
        (["tensorboard", "wandb"], "'wandb', which is not installed. `pip install wandb`"),
    ],
)
def test_a_tracker_that_cannot_be_used_is_named(names, message, monkeypatch, tmp_path):
    (tmp_path / "wandb").mkdir()  # the folder wandb logs into looks like a package
    monkeypatch.setattr(sys, "path", [str(tmp_path), *[p for p in sys.path if "site-packages" not in p]])
    monkeypatch.setattr(trackers, "KNOWN", ("tensorboard", "wandb", "trackio"))
    monkeypatch.setitem(sys.modules, "tensorboard", pytest)  # there, as far as this test goes
    with pytest.raises(ValueError) as error:
        trackers.check_trackers(names)
    assert message in str(error.value)


def test_tensorboard_is_the_default_and_its_files_lie_in_the_run(trained):
    chosen, run = trained
    assert chosen.run.report_to == ["tensorboard"]
    (events,) = (run.path / "tensorboard").iterdir()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(events)).Reload()
    assert [event.step for event in reader.Scalars("train/reward")] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("names", "report_to"), [("[]", []), ("[tensorboard]", []), ("[tensorboard,wandb]", ["wandb"])]
)
def test_other_trackers_are_passed_to_transformers(names, report_to, tmp_path):
    args = make_trl_config(config.load_config(["tiny"], [f"run.report_to={names}"]), tmp_path)
    assert args.report_to == report_to and args.run_name == "tiny"
