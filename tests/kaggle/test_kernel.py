"""Kernel metadata: sound ones pass, and each way in which Kaggle would misread one is refused."""

import json

import pytest
from slugify import slugify

from grpo_kit.kaggle import kernel

CODE = json.dumps({"cells": [{"cell_type": "code", "source": "1", "outputs": [], "execution_count": None}]})


def sound(**other):
    made = kernel.metadata(
        "ada",
        "grpo-kit 03 training",
        "03_training.ipynb",
        "NvidiaRtxPro6000",
        ("ada/wheels",),
        ("ada/grpo-kit-02-data",),
    )
    return made | other


def test_every_field_is_there_and_sound():
    told = sound()
    kernel.check(told, CODE)
    assert told == {
        "id": "ada/grpo-kit-03-training", "title": "grpo-kit 03 training", "code_file": "03_training.ipynb", "language": "python",
        "kernel_type": "notebook", "is_private": True, "enable_gpu": True, "enable_tpu": False, "enable_internet": False,
        "machine_shape": "NvidiaRtxPro6000", "competition_sources": ["nvidia-nemotron-model-reasoning-challenge"],
        "model_sources": ["metric/nemotron-3-nano-30b-a3b-bf16/Transformers/default/1"], "dataset_sources": ["ada/wheels"],
        "kernel_sources": ["ada/grpo-kit-02-data"],
    }  # fmt: skip


@pytest.mark.parametrize("name", kernel.ACCELERATORS)
def test_every_accelerator_is_taken_and_has_a_preset_of_ours(name):
    from grpo_kit import config

    kernel.check(sound(machine_shape=name), CODE)
    assert kernel.ACCELERATORS[name].preset in config.preset_names()


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"title": "grpo", "id": "ada/grpo"}, "5 to 50"),
        ({"title": "g" * 51, "id": "ada/" + "g" * 51}, "5 to 50"),
        ({"title": "Another title"}, "would start another kernel"),
        ({"id": "ada/GRPO-kit-03-training"}, "owner/slug"),
        ({"id": "grpo-kit-03-training"}, "owner/slug"),
        ({"id": "ada/grpo-kit-03-training/2"}, "owner/slug"),
        ({"id": "ada/grpo-kit--03-training"}, "owner/slug"),
        ({"language": "r"}, "'python'"),
        ({"kernel_type": "script"}, "'notebook'"),
        ({"machine_shape": ""}, "accelerator is ''"),
        ({"machine_shape": "t4"}, "Did you mean NvidiaTeslaT4?"),
        ({"machine_shape": "NvidiaRTXPro6000"}, "Did you mean NvidiaRtxPro6000?"),
        ({"machine_shape": "TpuV5E8"}, "Kaggle knows"),
        ({"enable_gpu": False}, "enable_gpu"),
        ({"enable_tpu": True}, "enable_tpu"),
        ({"enable_gpu": "true"}, "enable_gpu"),
        ({"enable_internet": True}, "refuses internet"),
        ({"dataset_sources": ["wheels"]}, "owner/slug"),
        ({"dataset_sources": ["https://www.kaggle.com/datasets/ada/wheels"]}, "owner/slug"),
        ({"dataset_sources": [None]}, "owner/slug"),
        ({"dataset_sources": ["ada/wheels", "ada/wheels"]}, "twice"),
        ({"kernel_sources": ["ada/kernel/3"]}, "owner/slug"),
        ({"competition_sources": ["competitions/nvidia"]}, "a slug"),
        ({"model_sources": ["metric/nemotron-3-nano-30b-a3b-bf16/Transformers/default"]}, "variation/version"),
        ({"model_sources": ["metric/nemotron-3-nano-30b-a3b-bf16/Transformers/default/latest"]}, "variation/version"),
        ({"code_file": "03_training.py"}, "ends in .ipynb"),
    ],
)  # fmt: skip
def test_what_kaggle_would_misread_is_refused(other, says):
    with pytest.raises(ValueError, match=says.replace("?", r"\?")):
        kernel.check(sound(**other), CODE)


def test_internet_is_not_refused_with_other_accelerators():
    kernel.check(sound(machine_shape="NvidiaTeslaT4", enable_internet=True), CODE)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("", "not a notebook"),
        ("import os", "not a notebook"),
        ("[]", "not a notebook"),
        ('{"cells": [3]}', "not a notebook"),
        (json.dumps({"cells": [{"outputs": [{"text": "x"}]}]}), "holds outputs"),
        (json.dumps({"cells": [{"outputs": [], "execution_count": 4}]}), "holds outputs"),
    ],
)
def test_the_code_file_is_a_notebook_without_outputs(code, says):
    with pytest.raises(ValueError, match=says):
        kernel.check(sound(), code)


@pytest.mark.parametrize("title", ["grpo-kit: 03 Training", "A  b__c", "-x-", "grpo-kit 03 training 80gb.v2"])
def test_the_slug_is_the_one_that_the_official_client_makes(title):
    assert kernel.slug(title) == slugify(title)


def test_a_folder_is_checked_as_a_whole(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        kernel.check_folder(tmp_path)
    (tmp_path / kernel.FILE).write_text(json.dumps(sound()))
    with pytest.raises(FileNotFoundError, match="no such file lies beside"):
        kernel.check_folder(tmp_path)
    (tmp_path / "03_training.ipynb").write_text(CODE)
    assert kernel.check_folder(tmp_path)["id"] == "ada/grpo-kit-03-training"
    (tmp_path / kernel.FILE).write_text(json.dumps(sound(code_file="../03_training.ipynb")))
    with pytest.raises(FileNotFoundError, match="no such file lies beside"):
        kernel.check_folder(tmp_path)
    (tmp_path / kernel.FILE).write_text(json.dumps({"code_file": "03_training.ipynb"}))
    with pytest.raises(ValueError, match="lacks"):
        kernel.check_folder(tmp_path)
    (tmp_path / kernel.FILE).write_text("[")
    with pytest.raises(ValueError, match="not kernel metadata"):
        kernel.check_folder(tmp_path)
