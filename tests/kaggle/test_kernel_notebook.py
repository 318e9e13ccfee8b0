"""A notebook as a kernel: its form filled in, its first cell looking at the machine, the notebook itself untouched."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from grpo_kit.kaggle import kernel_notebook
from grpo_kit.kaggle.kernel import MOUNTED_MODEL, check_folder

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


def stage(tmp_path, notebook="03_training", **other):
    told = {"owner": "ada", "machine_shape": "NvidiaTeslaT4", "root": tmp_path} | other
    return kernel_notebook.kernel(notebook=kernel_notebook.find_notebook(notebook), **told)


def text(kernel):
    return "\n".join("".join(cell["source"]) for cell in json.loads(kernel.code)["cells"])


@pytest.mark.parametrize("notebook", sorted(path.stem for path in NOTEBOOKS.glob("[0-9]*.ipynb")))
def test_every_notebook_of_the_kit_makes_a_sound_kernel(tmp_path, notebook):
    kernel = stage(tmp_path, notebook, preset="tiny", run="r", overrides=["grpo.max_steps=2"])
    kernel.write()
    assert check_folder(kernel.folder) == kernel.metadata
    assert 'preset = "tiny"' in text(kernel) and 'run_name = "r"' in text(kernel)
    assert (
        kernel.metadata["dataset_sources"] == ["ada/grpo-kit-wheels-cp312"] and kernel.metadata["model_sources"] == []
    )


def test_the_form_is_filled_in_and_stays_a_form(tmp_path):
    said = text(stage(tmp_path, overrides=["grpo.max_steps=2", 'data.prompt_suffix="\\\\boxed"']))
    line = next(line for line in said.splitlines() if line.startswith("overrides ="))
    assert line.endswith('#@param {type:"string"}')
    value = json.loads(line.removeprefix("overrides = ").partition("  #@param")[0].strip())
    assert value == f'policy.model={MOUNTED_MODEL} grpo.max_steps=2 data.prompt_suffix="\\\\boxed"'
    assert 'preset = "t4x2"  #@param' in said and 'run_name = "t4x2"  #@param' in said


def test_a_model_of_ones_own_stays_and_the_tiny_policy_mounts_none(tmp_path):
    assert MOUNTED_MODEL not in text(stage(tmp_path, overrides=["policy.model=/kaggle/input/mine"]))
    assert MOUNTED_MODEL not in text(stage(tmp_path, preset="tiny"))


def test_nothing_is_written_before_it_is_asked_for_and_nothing_into_the_repository(tmp_path):
    before = {path: path.read_bytes() for path in NOTEBOOKS.glob("*.ipynb")}
    kernel = stage(tmp_path)
    assert list(tmp_path.iterdir()) == []
    kernel.write()
    assert sorted(path.name for path in kernel.folder.iterdir()) == ["03_training.ipynb", "kernel-metadata.json"]
    assert kernel.folder.is_relative_to(tmp_path / "t4x2")
    assert {path: path.read_bytes() for path in NOTEBOOKS.glob("*.ipynb")} == before


def test_the_same_content_is_the_same_push_and_another_accelerator_is_another(tmp_path):
    assert stage(tmp_path).content == stage(tmp_path).content
    assert stage(tmp_path).content != stage(tmp_path, machine_shape="NvidiaL4X1").content
    assert stage(tmp_path).content != stage(tmp_path, overrides=["grpo.max_steps=3"]).content


@pytest.mark.parametrize(
    ("other", "error", "says"),
    [
        ({"notebook": "09_nothing"}, FileNotFoundError, "There are 01_setup"),
        ({"machine_shape": "H100"}, ValueError, r"Did you mean NvidiaH100\?"),
        ({"preset": "mine.yaml"}, ValueError, "takes a preset"),
        ({"overrides": ["grpo.max_step=3"]}, ValueError, "Did you mean grpo.max_steps"),
        ({"overrides": ["grpo.max_steps=many"]}, ValueError, "does not fit"),
        ({"overrides": ["data.prompt_suffix=a b"]}, ValueError, "parts its overrides at spaces"),
        ({"run": "../up"}, ValueError, "Invalid run name"),
        ({"run": "r" * 40}, ValueError, "5 to 50"),
        ({"datasets": ["wheels"]}, ValueError, "owner/slug"),
        ({"kernels": ["ada/a/b/c"]}, ValueError, "owner/slug"),
    ],
)
def test_what_would_fail_on_kaggle_is_refused_here(tmp_path, other, error, says):
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
    with pytest.raises(ValueError, match="not exactly one form field `preset"):
        kernel_notebook.fill(path, {"preset": "tiny"}, "NvidiaTeslaT4")
    path.write_text("no notebook")
    with pytest.raises(ValueError, match="not a notebook"):
        kernel_notebook.fill(path, {"preset": "tiny"}, "NvidiaTeslaT4")


@pytest.mark.parametrize(
    ("shape", "gpus", "stops"),
    [
        ("NvidiaTeslaT4", ["Tesla T4", "Tesla T4"], False),
        ("NvidiaTeslaT4", ["Tesla P100-PCIE-16GB"], True),
        ("NvidiaRtxPro6000", ["NVIDIA RTX PRO 6000 Blackwell Server Edition"], False),
        ("NvidiaRtxPro6000", ["Tesla P100-PCIE-16GB"], True),
        ("NvidiaH100", ["NVIDIA H100 80GB HBM3"], False),
        ("NvidiaL4X1", [], True),
    ],
)
def test_the_first_cell_names_the_gpu_and_stops_on_another_than_was_asked_for(tmp_path, shape, gpus, stops):
    code = "".join(json.loads(stage(tmp_path, machine_shape=shape).code)["cells"][0]["source"])
    assert len(code.splitlines()) <= 25
    tool = tmp_path / "nvidia-smi"
    if gpus:
        tool.write_text("#!/bin/sh\n" + "".join(f"echo '{gpu}'\n" for gpu in gpus))
        tool.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PATH": f"{tmp_path}:/bin"}, capture_output=True, text=True
    )
    assert (done.returncode != 0) is stops
    assert done.stdout.strip() == f"{kernel_notebook.SEEN} {', '.join(gpus) or 'no GPU'}"
    assert not stops or "Stopped to save the quota" in done.stderr
