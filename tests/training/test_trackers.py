"""`run.report_to` is checked before training, TensorBoard's files lie in the run, and no tracker ends a training.

Covered: stand-ins for wandb and trackio. Tried by hand: wandb 0.31.0 and trackio 0.43.0 with a port where nobody
listens, and with a folder that cannot be written.
"""

import importlib
import sys
import types

import pytest
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback

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


# (tracker, the environment, .netrc) -> (what gets the figures, what the sentence says)
CHOSEN = [
    (("tensorboard", {}, ""), ([], "tensorboard gets the figures too.")),
    (("wandb", {"WANDB_API_KEY": "k" * 40}, ""), (["wandb"], "its key is WANDB_API_KEY in the environment.")),
    (("wandb", {}, "machine api.wandb.ai login user password k"), (["wandb"], "/.netrc.")),
    (("wandb", {"WANDB_MODE": "offline"}, ""), (["wandb"], "wandb gets the figures too.")),
    (("wandb", {}, ""), ([], "has no WANDB_API_KEY in the environment or in the secrets of Colab or Kaggle, so the")),
    (("wandb", {"WANDB_API_KEY": ""}, "machine other.host"), ([], "goes on without it. Store one there")),
    (("trackio", {}, ""), (["trackio"], "on this machine's disk.")),
    (("trackio", {"TRACKIO_SPACE_ID": "ada/s", "HF_TOKEN": "t"}, ""), (["trackio"], "on the Space ada/s.")),
    (("trackio", {"TRACKIO_SPACE_ID": "ada/s"}, ""), ([], "there is no HF_TOKEN for it")),
]


@pytest.fixture
def installed(monkeypatch):
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, pytest)  # there, as far as this test goes


def test_a_tracker_without_its_key_is_left_out_with_a_sentence(installed, tmp_path):
    for (name, environ, netrc), (more, says) in CHOSEN:
        (tmp_path / ".netrc").write_text(netrc)
        names, sentence = trackers.choose_trackers(name, dict(environ), tmp_path)
        assert names == ["tensorboard", *more], (name, environ, netrc)
        assert says in sentence and "kkk" not in sentence, (name, environ, sentence)


def test_a_key_of_colabs_secrets_reaches_wandb_and_no_sentence(installed, monkeypatch, tmp_path):
    monkeypatch.setattr("grpo_kit.kaggle.credentials._colab_secret", {"WANDB_API_KEY": "k" * 40}.get)
    environ = {}
    names, sentence = trackers.choose_trackers("wandb", environ, tmp_path)
    assert names == ["tensorboard", "wandb"] and environ == {"WANDB_API_KEY": "k" * 40}
    assert "WANDB_API_KEY in Colab's secrets" in sentence and "kkk" not in sentence


@pytest.mark.parametrize(
    "content", [b"\xff\xfe api.wandb.ai", b"#machine api.wandb.ai login user password k", b"machine api.wandb.ai what"]
)
def test_a_netrc_that_cannot_be_read_or_has_the_line_commented_out_is_no_key(installed, tmp_path, content):
    (tmp_path / ".netrc").write_bytes(content)
    assert trackers.choose_trackers("wandb", {}, tmp_path)[0] == ["tensorboard"]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_that_is_missing_is_left_out_with_the_command_that_adds_it(name, monkeypatch):
    monkeypatch.setattr(trackers, "_is_installed", lambda _: False)
    names, sentence = trackers.choose_trackers(name, {})
    assert names == ["tensorboard"]
    assert sentence == f"{name} is not installed, so the training goes on without it. `pip install {name}` adds it."


def test_a_tracker_that_nobody_knows_is_refused():
    with pytest.raises(ValueError, match="tracker is 'wandbb'; it must be one of none, tensorboard, wandb, trackio"):
        trackers.choose_trackers("wandbb", {})


def test_tensorboard_is_shown_for_the_runs_folder(monkeypatch, tmp_path):
    started = []
    # `tensorboard` loads its parts when they are used, and a name set on the stand-in would not arrive.
    monkeypatch.setattr(importlib.import_module("tensorboard.notebook"), "start", started.append)
    trackers.show_tensorboard(tmp_path / "my run")
    assert started == [f"--logdir '{tmp_path / 'my run' / 'tensorboard'}' --reload_interval 5"]


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


# A tracker that fails


class Away(TrainerCallback):
    """A tracker whose server never answers."""

    def on_train_begin(self, *args, **kwargs):
        calls.append("begin")
        raise ConnectionError("connection refused\nSee our page of advice.")

    def on_log(self, *args, **kwargs):
        calls.append("log")


calls = []


def events(trainer, names, run):
    """Transformers' own handler of the callbacks that a training gets."""
    made = trackers.make_callbacks(trainer, names, run)
    handler = CallbackHandler([DefaultFlowCallback(), *made], None, None, None, None)
    return lambda event: getattr(handler, event)(trainer.args, TrainerState(), TrainerControl(), **LOGS.get(event, {}))


LOGS = {"on_log": {"logs": {"reward": 1.0}}}


def trainer_with(callback, *names):
    """As much of a trainer as the trackers need; `callback` is the one that transformers made."""
    args = types.SimpleNamespace(report_to=list(names), run_name="mine", output_dir="out", to_dict=dict)
    return types.SimpleNamespace(args=args, pop_callback=lambda kind: callback)


def test_a_tracker_that_raises_is_lost_once_and_the_training_goes_on(monkeypatch, tmp_path):
    monkeypatch.setattr(sys.modules[__name__], "calls", [])
    trainer = trainer_with(Away(), "trackio")
    send = events(trainer, ["trackio"], tmp_path)
    with pytest.warns(UserWarning) as warned:
        send("on_train_begin")
        send("on_log")
    assert calls == ["begin"] and trainer.args.report_to == []  # TRL would send its timings there
    assert [str(warning.message) for warning in warned] == [
        "trackio gets no figures from here on (connection refused). The training goes on, and its own files have all "
        "of them."
    ]


def test_ctrl_c_is_no_fault_of_a_tracker(monkeypatch, tmp_path):
    class Stopped(TrainerCallback):
        def on_log(self, *args, **kwargs):
            raise KeyboardInterrupt

    send = events(trainer_with(Stopped(), "trackio"), ["trackio"], tmp_path)
    with pytest.raises(KeyboardInterrupt):
        send("on_log")


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for wandb's package: its server refuses every run, and `logged` has what was kept on the disk."""

    def init(mode="online", **options):
        if mode == "online":
            raise ConnectionError("Timed out while retrying\nConsider increasing the init_timeout setting")
        module.run = types.SimpleNamespace(dir="/here/wandb/offline run/files", _label=lambda code: None, summary={})
        module.started = options
        return module.run

    module = types.SimpleNamespace(run=None, init=init, logged=[], config={}, define_metric=lambda *_, **__: None)
    module.log = lambda figures: module.logged.append(figures)
    config_errors = types.SimpleNamespace(ConfigError=KeyError)
    for name, part in {"": module, ".sdk": module, ".sdk.lib": module, ".sdk.lib.config_util": config_errors}.items():
        monkeypatch.setitem(sys.modules, f"wandb{name}", part)
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: True)
    monkeypatch.setenv("WANDB_PROJECT", "sums")
    return module


def test_wandb_keeps_the_figures_on_the_disk_while_its_server_does_not_answer(wandb, tmp_path):
    send = events(trainer_with(None, "wandb"), ["wandb"], tmp_path)
    with pytest.warns(UserWarning) as warned:
        send("on_train_begin")
        send("on_log")
    assert [str(warning.message) for warning in warned] == [
        "wandb's server does not take the figures (Timed out while retrying); wandb keeps them in /here/wandb/offline "
        "run, and `wandb sync '/here/wandb/offline run'` sends them later."
    ]
    assert wandb.started == {"project": "sums", "name": "mine"}
    assert wandb.logged == [{"train/reward": 1.0, "train/global_step": 0}]


def test_wandb_is_lost_where_it_can_write_nowhere_either(wandb, monkeypatch, tmp_path):
    def init(**options):
        raise OSError(f"nowhere to write{options.get('mode', '')}")

    wandb.init = init
    trainer = trainer_with(None, "wandb")
    with pytest.warns(UserWarning, match=r"wandb gets no figures from here on \(nowhere to writeoffline\)"):
        events(trainer, ["wandb"], tmp_path)("on_train_begin")
    assert trainer.args.report_to == []


def test_tensorboard_is_lost_where_its_folder_cannot_be_written(tmp_path):
    (tmp_path / "tensorboard").touch()
    with pytest.warns(UserWarning, match=rf"tensorboard gets no figures .*File exists: '{tmp_path}/tensorboard'\)"):
        assert trackers.make_callbacks(trainer_with(None), ["tensorboard"], tmp_path) == []
