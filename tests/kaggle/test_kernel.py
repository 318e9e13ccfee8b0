"""A notebook as a Kaggle kernel: its form is filled in, its sources are mounted, and nothing else is changed."""

import json
from pathlib import Path

import pytest

from grpo_kit.kaggle import kernel
from grpo_kit.kaggle.accelerators import make_first_cell
from grpo_kit.kaggle.kernel_metadata import METADATA_FILE, MODEL, check_metadata
from grpo_kit.nemotron.base_models import MOUNTED_MODEL
from grpo_kit.runs.installation import read_install_cell

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


def stage(tmp_path, notebook="03_training", **other):
    settings = {"owner": "ada", "accelerator": "NvidiaTeslaT4", "root": tmp_path} | other
    return kernel.build_kernel(notebook=kernel.find_notebook(notebook), **settings)


def text(staged):
    return "\n".join("".join(cell["source"]) for cell in json.loads(staged.code)["cells"])


@pytest.mark.parametrize("notebook", sorted(path.stem for path in NOTEBOOKS.glob("[0-9]*.ipynb")))
def test_every_notebook_of_the_kit_makes_a_sound_kernel(tmp_path, notebook):
    staged = stage(tmp_path, notebook, preset="tiny", run="r", overrides=["grpo.max_steps=2"])
    staged.write()
    metadata = json.loads((staged.folder / METADATA_FILE).read_text())
    check_metadata(metadata, (staged.folder / f"{notebook}.ipynb").read_text())
    assert metadata == staged.metadata and metadata["code_file"] == f"{notebook}.ipynb"
    assert 'preset = "tiny"' in text(staged) and 'run_name = "r"' in text(staged)
    assert (
        staged.metadata["dataset_sources"] == ["ada/grpo-kit-wheels-cp312"] and staged.metadata["model_sources"] == []
    )


def test_the_notebook_form_is_filled_in_and_remains_a_form(tmp_path):
    words = ["grpo.max_steps=2", 'data.prompt_suffix="\\\\boxed"', 'data.system_prompt="Be brief"', "data.source=a b"]
    source = text(stage(tmp_path, overrides=words))
    line = next(line for line in source.splitlines() if line.startswith("overrides ="))
    assert line.endswith('#@param {type:"string"}')
    value = json.loads(line.removeprefix("overrides = ").partition("  #@param")[0].strip())
    assert value == f"policy.model={MOUNTED_MODEL} {' '.join(words[:3])} 'data.source=a b'"
    assert 'preset = "t4x2"  #@param' in source and 'run_name = "t4x2"  #@param' in source


def test_two_cells_stand_in_front_the_check_of_the_machine_and_the_wheels(tmp_path):
    first, second, *_ = json.loads(stage(tmp_path, accelerator="NvidiaL4").code)["cells"]
    assert first["source"] == make_first_cell("NvidiaL4") and second["source"] == read_install_cell()


def test_a_users_model_is_kept_and_the_tiny_policy_mounts_no_model(tmp_path):
    assert MOUNTED_MODEL not in text(stage(tmp_path, overrides=["policy.model=/kaggle/input/mine"]))
    assert MOUNTED_MODEL not in text(stage(tmp_path, preset="tiny"))


def overrides_of(staged):
    line = next(line for line in text(staged).splitlines() if line.startswith("overrides ="))
    return json.loads(line.removeprefix("overrides = ").partition("  #@param")[0].strip()).split()


def test_what_01_setup_quantises_is_part_of_its_output_and_later_notebooks_look_for_it():
    name = "kaggle--input--models--metric--nemotron-3-nano-30b-a3b-bf16--transformers--default--1"
    made = f"policy.nf4_folder=/kaggle/working/nf4/{name}"
    model = f"policy.model={MOUNTED_MODEL}"
    assert overrides_of(stage(Path("/nowhere"), "01_setup")) == [model, made]
    assert overrides_of(stage(Path("/nowhere"), "03_training")) == [model]
    mine = ["policy.nf4_folder=/kaggle/temp/nf4"]
    assert overrides_of(stage(Path("/nowhere"), "01_setup", overrides=mine)) == [model, *mine]
    assert overrides_of(stage(Path("/nowhere"), "01_setup", preset="tiny")) == []
    assert overrides_of(stage(Path("/nowhere"), "01_setup", preset="80gb")) == [model]  # not in 4 bit


@pytest.mark.parametrize(
    ("other", "models", "internet"),
    [
        ({}, [MODEL], False),
        ({"preset": "tiny"}, [], False),
        ({"preset": "t4-4b"}, [], True),  # the 30B must not take its place
        ({"overrides": ["policy.model=nvidia/NVIDIA-Nemotron-3.5-Lightning-30B-A3B-BF16"]}, [], True),
        ({"overrides": [f"policy.model={MOUNTED_MODEL}"]}, [MODEL], False),
        ({"preset": "t4-4b", "overrides": ["policy.model=/kaggle/input/mine"]}, [MODEL], False),
    ],
)
def test_the_30b_is_mounted_and_another_model_of_the_hub_is_downloaded(other, models, internet):
    metadata = stage(Path("/nowhere"), **other).metadata
    assert (metadata["model_sources"], metadata["enable_internet"]) == (models, internet)


def test_a_model_that_must_be_downloaded_needs_a_machine_with_internet():
    with pytest.raises(
        ValueError, match="Nano-4B-BF16, which a kernel downloads from the Hub, and NvidiaRtxPro6000 has"
    ):
        stage(Path("/nowhere"), preset="t4-4b", accelerator="NvidiaRtxPro6000")


def test_building_writes_only_when_called_and_never_into_the_repository(tmp_path):
    before = {path: path.read_bytes() for path in NOTEBOOKS.glob("*.ipynb")}
    staged = stage(tmp_path)
    assert list(tmp_path.iterdir()) == []
    staged.write()
    assert sorted(path.name for path in staged.folder.iterdir()) == ["03_training.ipynb", "kernel-metadata.json"]
    assert staged.folder.is_relative_to(tmp_path / "t4x2")
    assert {path: path.read_bytes() for path in NOTEBOOKS.glob("*.ipynb")} == before


def test_the_same_content_is_the_same_push_and_another_accelerator_is_another(tmp_path):
    assert stage(tmp_path).content == stage(tmp_path).content
    assert stage(tmp_path).content != stage(tmp_path, accelerator="NvidiaL4X1").content
    assert stage(tmp_path).content != stage(tmp_path, overrides=["grpo.max_steps=3"]).content


@pytest.mark.parametrize(
    ("other", "error", "says"),
    [
        ({"notebook": "09_nothing"}, FileNotFoundError, "There are 00_quickstart, 01_setup"),
        ({"accelerator": "H100"}, ValueError, r"Did you mean NvidiaH100\?"),
        ({"preset": "mine.yaml"}, ValueError, "takes a preset"),
        ({"overrides": ["grpo.max_step=3"]}, ValueError, "Did you mean grpo.max_steps"),
        ({"overrides": ["grpo.max_steps=many"]}, ValueError, "it must be a whole number"),
        ({"overrides": ["data.prompt_suffix=x\"y z' w"]}, ValueError, "cannot be written into a form field"),
        ({"run": "../up"}, ValueError, "Invalid run name"),
        ({"run": "r" * 40}, ValueError, "5 to 50"),
        ({"datasets": ["wheels"]}, ValueError, "owner/slug"),
        ({"kernels": ["ada/a/b/c"]}, ValueError, "owner/slug"),
    ],
)
def test_settings_that_would_fail_on_kaggle_are_refused(tmp_path, other, error, says):
    with pytest.raises(error, match=says):
        stage(tmp_path, **other)


@pytest.mark.parametrize(
    "source",
    ["x = 1", 'preset = "tiny"', 'preset = "a"  #@param\npreset = "b"  #@param', 'if 1:\n    preset = "a"  #@param'],
)
def test_a_notebook_without_the_form_field_is_refused(tmp_path, source):
    cells = [{"cell_type": "code", "source": [source], "outputs": [], "execution_count": None, "metadata": {}}]
    path = tmp_path / "mine.ipynb"
    path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    with pytest.raises(ValueError, match="not have exactly one form field `preset"):
        kernel.fill_notebook(path, {"preset": "tiny"}, "NvidiaTeslaT4")
    path.write_text("no notebook")
    with pytest.raises(ValueError, match="not a notebook"):
        kernel.fill_notebook(path, {"preset": "tiny"}, "NvidiaTeslaT4")
