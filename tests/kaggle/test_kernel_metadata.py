"""The metadata of a kernel: what Kaggle would refuse or misread is refused before."""

import json

import pytest
from slugify import slugify

from grpo_kit import config
from grpo_kit.kaggle import kernel_metadata
from grpo_kit.kaggle.accelerators import ACCELERATORS

CODE = json.dumps({"cells": [{"cell_type": "code", "source": "1", "outputs": [], "execution_count": None}]})


def sound(**other):
    metadata = kernel_metadata.make_metadata(
        "ada",
        "grpo-kit 03 training",
        "03_training.ipynb",
        "NvidiaRtxPro6000",
        ("ada/wheels",),
        ("ada/grpo-kit-02-data",),
    )
    return metadata | other


def test_every_metadata_field_is_present_and_valid():
    metadata = sound()
    kernel_metadata.check_metadata(metadata, CODE)
    assert metadata == {
        "id": "ada/grpo-kit-03-training",
        "title": "grpo-kit 03 training",
        "code_file": "03_training.ipynb",
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": True,
        "enable_tpu": False,
        "enable_internet": False,
        "machine_shape": "NvidiaRtxPro6000",
        "competition_sources": ["nvidia-nemotron-model-reasoning-challenge"],
        "model_sources": ["metric/nemotron-3-nano-30b-a3b-bf16/Transformers/default/1"],
        "dataset_sources": ["ada/wheels"],
        "kernel_sources": ["ada/grpo-kit-02-data"],
    }


@pytest.mark.parametrize("name", ACCELERATORS)
def test_every_accelerator_is_taken_and_has_a_preset_of_ours(name):
    kernel_metadata.check_metadata(sound(machine_shape=name), CODE)
    assert ACCELERATORS[name].preset in config.preset_names()


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
        ({"machine_shape": "TpuV5E8"}, "Kaggle has"),
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
def test_values_that_kaggle_would_misread_are_refused(other, says):
    with pytest.raises(ValueError, match=says.replace("?", r"\?")):
        kernel_metadata.check_metadata(sound(**other), CODE)


def test_internet_is_not_refused_with_other_accelerators():
    kernel_metadata.check_metadata(sound(machine_shape="NvidiaTeslaT4", enable_internet=True), CODE)


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
        kernel_metadata.check_metadata(sound(), code)


@pytest.mark.parametrize("title", ["grpo-kit: 03 Training", "A  b__c", "-x-", "grpo-kit 03 training 80gb.v2"])
def test_the_slug_is_the_one_that_the_official_client_makes(title):
    assert kernel_metadata.make_slug(title) == slugify(title)
