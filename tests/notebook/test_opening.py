"""A run opened from a form: its place, the preset for the machine, its trackers, and a missing stage."""

import errno
import os
import sys
import types

import pytest

from grpo_kit import config, notebook
from grpo_kit.notebook import opening
from grpo_kit.planning import machines
from grpo_kit.runs import places
from grpo_kit.runs.places import find_root
from grpo_kit.runs.run import Run, find_run

ON_GITHUB = "ada/kit/blob/main/notebooks/02_data.ipynb"
COLAB, KAGGLE = {"COLAB_RELEASE_TAG": "release"}, {"KAGGLE_KERNEL_RUN_TYPE": "Interactive"}


@pytest.mark.parametrize(
    ("environ", "place", "link"),
    [
        ({}, "local", "02_data.ipynb"),
        (COLAB, "colab", f"https://colab.research.google.com/github/{ON_GITHUB}"),
        (KAGGLE, "kaggle", f"https://kaggle.com/kernels/welcome?src=https://github.com/{ON_GITHUB}"),
        (COLAB | KAGGLE, "kaggle", None),  # Kaggle's image descends from Colab's
    ],
)  # fmt: skip
def test_the_place_is_detected_and_links_stay_in_it(monkeypatch, environ, place, link):
    monkeypatch.setattr(opening, "REPOSITORY", "")
    assert opening.notebook_link("02_data", environ) == "02_data.ipynb"  # nobody may own a name that is linked
    monkeypatch.setattr(opening, "REPOSITORY", "ada/kit")
    assert places.detect_place(environ) == place
    assert link is None or opening.notebook_link("02_data", environ) == link


@pytest.mark.parametrize(
    ("device", "preset"),
    [
        (machines.Device("laptop", 0.0), "tiny"),
        (machines.Device("a card for games", 8.0), "tiny"),
        (machines.Device("Tesla T4", 14.56, triton=False), "t4"),  # memory as PyTorch reports it
        (machines.Device("Tesla T4", 14.56, gpus=2, triton=False), "t4x2"),
        (machines.Device("Tesla P100", 15.9, triton=False), "t4"),  # no bf16, like the T4
        (machines.Device("NVIDIA L4", 22.0), "24gb"),
        (machines.Device("Quadro RTX 6000", 23.6, triton=False), "t4"),  # 24 GB without bf16
        (machines.Device("NVIDIA A100-SXM4-40GB", 39.4), "24gb"),
        (machines.Device("NVIDIA A100-SXM4-80GB", 79.2), "80gb"),
        (machines.Device("NVIDIA H100 80GB HBM3", 79.1), "80gb"),
    ],
)
def test_the_suggested_preset_fits_the_memory_and_the_dtypes_of_the_machine(device, preset):
    assert machines.suggest_preset(device) == preset
    assert machines.auto_preset(device) == ("tiny" if preset == "tiny" else "t4-4b")
    assert preset == "tiny" or config.load_config([preset])


def test_auto_takes_the_4b_on_a_t4_and_names_the_preset_of_the_30b_and_its_download(monkeypatch, capsys):
    monkeypatch.setattr(machines, "this_device", lambda: machines.DEVICES["t4"])
    config_of_form, run = notebook.open_from_form("auto", " ", "grpo.max_steps=7  grpo.beta=0.1")
    assert (run.name, config_of_form.grpo.max_steps) == ("t4-4b", 7)
    assert config_of_form.policy.model == "nvidia/NVIDIA-Nemotron-3-Nano-4B-BF16"
    printed = capsys.readouterr().out
    assert printed.startswith(
        "auto takes the preset t4-4b, Nemotron-3-Nano-4B. t4 has room for the 30B model too: choose the preset t4 for "
        "it. Loading the policy downloads 59 GiB from the Hub: about 11 minutes at 100 MB/s, 21 at half that speed."
    )
    assert "run 't4-4b' in " in printed
    assert "Loading the policy downloads 7.4 GiB from the Hub: about 1.3 minutes at 100 MB/s, 2.6 at half" in printed


def test_without_a_gpu_auto_says_nothing_of_downloads(monkeypatch, capsys):
    monkeypatch.setattr(machines, "this_device", lambda: machines.Device("laptop", 0.0))
    assert notebook.open_from_form("auto")[1].name == "tiny"
    assert "download" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("preset", "overrides", "name", "steps", "length"),
    [
        ("tiny", "", "tiny-quickstart", 30, 40),
        ("t4-4b", "", "t4-4b-quickstart", 30, 1024),
        ("t4-4b", "grpo.max_steps=7", "t4-4b-quickstart", 7, 1024),  # what a person wrote wins
    ],
)
def test_a_quick_run_is_short_and_lies_beside_the_others(preset, overrides, name, steps, length):
    chosen, run = notebook.open_from_form(preset, "", overrides, quick=True)
    assert (run.name, chosen.grpo.max_steps, chosen.grpo.max_completion_length) == (name, steps, length)
    assert notebook.open_from_form(preset, "mine", quick=True)[1].name == "mine"


@pytest.mark.slow
def test_a_quick_run_of_the_4b_takes_the_minutes_that_the_quickstart_says():
    from grpo_kit.planning import sessions
    from grpo_kit.planning.plan import plan

    planned = plan(notebook.open_from_form("t4-4b", quick=True)[0], machines.DEVICES["t4"], search=False)
    both = (planned.times.least, planned.times.most)
    minutes = [
        (30 * step + 2 * times.evaluation + sessions.first_reply_seconds(planned)) / 60
        for step, times in zip(sessions.step_seconds(planned), both)
    ]
    assert 60 < minutes[0] < minutes[1] < 95  # "70 to 90 for the 4B (computed)"


@pytest.mark.parametrize(
    ("tracker", "overrides", "names", "printed"),
    [
        ("none", "", ["tensorboard"], "The figures are on the board and in "),
        ("tensorboard", "", ["tensorboard"], "tensorboard starts\n"),
        ("wandb", "", ["tensorboard", "wandb"], "wandb prints the address"),
        ("wandb", "run.report_to=[]", [], "The figures are on the board"),  # what a person wrote wins
        ("trackio", "", ["tensorboard"], "The figures are on the board"),
    ],
)
def test_the_field_tracker_says_who_gets_the_figures(monkeypatch, capsys, tracker, overrides, names, printed):
    from grpo_kit.training import trackers

    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setattr(trackers, "_is_installed", lambda name: name != "trackio")
    monkeypatch.setattr(trackers, "show_tensorboard", lambda run: print("tensorboard starts"))
    chosen, run = notebook.open_from_form("tiny", "", overrides, tracker=tracker)
    assert chosen.run.report_to == names
    if tracker == "trackio":
        assert "`!pip install trackio` in a cell adds it." in capsys.readouterr().out
    notebook.show_tracker(chosen, run, tracker)
    output = capsys.readouterr().out
    assert printed in output and "kkk" not in output


def test_a_preset_that_a_person_chose_says_what_it_downloads_before_it_does(monkeypatch, capsys, tmp_path):
    config_of_form, run = notebook.open_from_form("t4")
    assert (run.name, config_of_form.policy.load_in_4bit) == ("t4", True)
    assert "Loading the policy downloads 59 GiB from the Hub: about 11 minutes" in capsys.readouterr().out
    notebook.open_from_form("t4", "", f"policy.model={tmp_path}")  # mounted, as on Kaggle
    assert "downloads" not in capsys.readouterr().out
    notebook.open_from_form("80gb", "", "policy.model=someone/else")
    assert "downloads someone/else from the Hub, unless" in capsys.readouterr().out


def test_an_override_with_a_space_arrives():
    config_of_form, run = notebook.open_from_form(
        "tiny", "ov", 'data.system_prompt="Be brief, please" grpo.max_steps=2 grpo.reward_weights=[1.0, 0.5]', False
    )
    settings = (config_of_form.data.system_prompt, config_of_form.grpo.max_steps, config_of_form.grpo.reward_weights)
    assert settings == ("Be brief, please", 2, [1.0, 0.5]) and run.name == "ov"


@pytest.mark.slow
def test_auto_continues_a_run_of_that_name_with_its_settings_on_any_machine(monkeypatch):
    monkeypatch.setattr(machines, "this_device", lambda: machines.DEVICES["80gb"])
    config_of_form = config.load_config(["t4"], ["grpo.max_steps=7"])
    find_run("mine").record_stage("data", {}, [], [], 1.0, config.to_yaml(config_of_form))
    config_again, run = notebook.open_from_form("auto", "mine")
    assert (run.name, config_again.policy.dtype, config_again.grpo.max_steps) == ("mine", "float16", 7)
    assert notebook.open_from_form("tiny", "mine")[0].policy.model == "tiny"  # a preset that is named wins
    assert (
        notebook.open_from_form("auto", "", "run.name=mine")[0].grpo.max_steps == 7
    )  # as the remedy of an error suggests


@pytest.mark.parametrize(
    "fields", [("tinny", "", ""), ("tiny", "a/b", ""), ("tiny", "", "grpo.max_step=3"), ("tiny", "", "fast")]
)
def test_an_invalid_field_is_refused_in_one_sentence(fields):
    with pytest.raises(ValueError, match=r"\w\."):
        notebook.open_from_form(*fields)


def fake_drive(monkeypatch, mount):
    module = types.SimpleNamespace(drive=types.SimpleNamespace(mount=mount))
    monkeypatch.setitem(sys.modules, "google.colab", module)


def test_drive_is_mounted_only_once(monkeypatch, tmp_path):
    mounted = []
    fake_drive(
        monkeypatch, lambda path: (tmp_path / "content/drive/MyDrive").mkdir(parents=True) or mounted.append(path)
    )
    assert [places.mount_drive(tmp_path) for _ in range(2)] == [
        "Google Drive is mounted: the run is kept when the session ends."
    ] * 2
    assert mounted == [str(tmp_path / "content/drive")]


@pytest.mark.parametrize("reason", ["mount failed", "", "Error: credential propagation was unsuccessful"])
def test_a_notebook_continues_without_drive_when_mounting_fails(monkeypatch, tmp_path, reason):
    def refuse(path):
        raise ValueError(reason)

    fake_drive(monkeypatch, refuse)
    assert places.mount_drive(tmp_path) == (
        f"Google Drive is not mounted ({reason or 'ValueError'}), so the run is kept on this machine's disk and is "
        "lost when the session ends. Run this cell again to be asked again."
    )


@pytest.fixture
def dead_drive(monkeypatch, tmp_path):
    """A Drive that died while mounted, as Colab's does; it lives again when the value is set to False."""
    state, real = {"dead": True}, os.stat
    (tmp_path / "content/drive/MyDrive").mkdir(parents=True)

    def stat(path, *args, **kwargs):
        if state["dead"] and str(path).startswith(str(tmp_path / "content/drive")):
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", stat)
    monkeypatch.setenv("GRPO_KIT_ROOT", "")  # so that the test's end restores it
    return state


def test_a_drive_that_died_while_mounted_is_mounted_anew(monkeypatch, tmp_path, dead_drive):
    mounts = []
    fake_drive(monkeypatch, lambda path, **options: mounts.append((path, options)) or dead_drive.update(dead=False))
    assert places.mount_drive(tmp_path) == (
        "Google Drive did not answer. Google Drive is mounted anew: the run is kept when the session ends."
    )
    assert mounts == [(str(tmp_path / "content/drive"), {"force_remount": True})]
    assert find_root(COLAB, tmp_path) == tmp_path / "content/drive/MyDrive/grpo-kit/runs"


def test_a_drive_that_stays_dead_is_left_and_taken_again_when_it_answers(monkeypatch, tmp_path, dead_drive):
    fake_drive(monkeypatch, lambda path, force_remount=False: None)
    text = places.mount_drive(tmp_path)
    assert text.startswith("Google Drive did not answer. Google Drive is not mounted (")
    assert "the run is kept on this machine's disk" in text and "Errno" not in text
    local = tmp_path / "content/grpo-kit/runs"
    assert find_root(os.environ | COLAB, tmp_path) == local
    dead_drive["dead"] = False
    assert places.mount_drive(tmp_path) == "Google Drive is mounted: the run is kept when the session ends."
    assert find_root(dict(os.environ) | COLAB, tmp_path) == tmp_path / "content/drive/MyDrive/grpo-kit/runs"


def test_a_run_on_a_dead_drive_is_one_sentence_with_the_remedy(tmp_path, dead_drive):
    with pytest.raises(OSError, match="mounted but does not answer .Transport endpoint.*mounts Drive anew") as caught:
        find_root(COLAB, tmp_path)
    assert "GRPO_KIT_ROOT=/content/grpo-kit/runs" in str(caught.value)


def test_drive_is_not_mounted_outside_colab_or_when_it_is_switched_off(monkeypatch, capsys):
    fake_drive(monkeypatch, lambda path: pytest.fail("Drive was mounted"))
    notebook.open_from_form("tiny")
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    monkeypatch.setenv("GRPO_KIT_ROOT", "runs")
    notebook.open_from_form("tiny", use_drive=False)
    assert "Drive" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("environ", "advice"), [({}, ""), (COLAB, ""), (KAGGLE, " On Kaggle, add that notebook's output")]
)
def test_a_missing_stage_is_reported_in_one_sentence_with_a_link(
    monkeypatch, displayed_texts, tmp_path, environ, advice
):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    link = opening.notebook_link("02_data")
    with pytest.raises(FileNotFoundError) as raised:
        notebook.require_stage(Run(tmp_path, "r"), "data", "02_data")
    assert (
        str(raised.value) == f"Run 'r' has no finished stage 'data' in {tmp_path / 'r'}. Run `notebook {link}` first."
    )
    assert displayed_texts[0].startswith(f"Run **[02_data]({link})** first, then this notebook again.{advice}")


def test_nothing_is_shown_for_a_stage_that_is_finished(displayed_texts, tmp_path):
    run = Run(tmp_path, "r")
    run.record_stage("data", {}, [], [], 1.0, "")
    notebook.require_stage(run, "data", "02_data")
    assert displayed_texts == []
