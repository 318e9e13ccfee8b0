"""What pip replaces on the images of Colab and Kaggle: the requirements resolved around dated lists of their packages.

Nothing is downloaded. A package of the image stays where it meets what is asked of it, as with pip. Another one comes
in the version that is installed here, with the requirements that it has here. `tests/images` holds the lists.
"""

import importlib.metadata
import re

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from grpo_kit.kaggle import wheels
from grpo_kit.runs.installation import CELL, OLDEST_TORCHAO
from tests.helpers.settings import ROOT

PYTHON = {"colab": "3.13", "kaggle": "3.12"}
OURS = [
    Requirement(line)
    for line in (ROOT / "requirements.txt").read_text().splitlines()
    if line.strip() and not line.startswith("#")
]


def read_image(name):
    lines = (ROOT / f"tests/images/{name}.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def resolve(image, python):
    """({package that pip replaces: its version in the image}, the packages that pip adds) for a Python such as 3.12."""
    environment = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    replaced, added, waiting = {}, set(), list(OURS)
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate(environment):
            continue
        if name in replaced or name in added:
            continue
        if name in image:
            if requirement.specifier.contains(image[name], prereleases=True):
                continue
            replaced[name] = str(image[name])
        else:
            added.add(name)
        waiting += map(Requirement, importlib.metadata.requires(name) or [])
    return replaced, added


# {package: its version in the image}. If one of these was imported before pip ran, the session must be restarted.
REPLACED = {
    "colab": {
        "datasets": "4.0.0", "huggingface-hub": "1.27.0", "peft": "0.20.0", "pyarrow": "18.1.0", "tokenizers": "0.22.2",
        "transformers": "5.15.0",
    },
    "kaggle": {
        "accelerate": "1.13.0", "click": "8.3.3", "datasets": "4.0.0", "hf-xet": "1.4.3", "huggingface-hub": "1.11.0",
        "idna": "3.13", "peft": "0.19.1", "pyarrow": "18.1.0", "safetensors": "0.7.0", "tokenizers": "0.22.2",
        "transformers": "5.0.0",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PYTHON)
def test_what_an_installation_replaces_on_an_image(name):
    replaced, added = resolve(read_image(name), PYTHON[name])
    assert replaced == REPLACED[name]
    assert {"trl", "bitsandbytes", "math-verify", "optuna"} <= added


@pytest.mark.parametrize("name", PYTHON)
def test_an_image_keeps_its_torch_and_loses_its_torchao(name):
    image = read_image(name)
    kept = re.search(r"^KEEP = \((.+)\)$", CELL.read_text(), re.MULTILINE)
    names = re.findall(r'"([\w-]+)"', kept[1])
    assert len(names) == 6 and set(names) <= set(image)  # the cell pins them for pip
    for requirement in OURS:
        assert requirement.name not in names or requirement.specifier.contains(image[requirement.name])
    assert str(image["torchao"]) == "0.10.0" and image["torchao"] < Version(OLDEST_TORCHAO)


def test_the_wheels_are_resolved_around_the_versions_of_kaggles_image():
    image = read_image("kaggle")
    assert {name: image[name].public for name in wheels.IMAGE} == wheels.IMAGE
