"""The base is named by its id on the Hub, never by a folder of somebody's machine."""

import json

import pytest

from grpo_kit.config import Policy
from grpo_kit.nemotron.base_models import LIGHTNING, MOUNTED_MODEL, NANO_4B, PUBLISHED
from grpo_kit.nemotron.nf4_layout import FORMAT
from grpo_kit.publishing.base import find_base

NVIDIA, OWN = "nvidia-nemotron-open-model-license", "terms-of-the-base"
# policy.model: the id, the licence's name
BASES = {
    PUBLISHED: (PUBLISHED, NVIDIA),
    MOUNTED_MODEL: (PUBLISHED, NVIDIA),  # where Kaggle mounts it
    NANO_4B: (NANO_4B, NVIDIA),
    LIGHTNING: (LIGHTNING, "openmdw-1.1"),
    "unsloth/Nemotron-3-Nano-30B-A3B": ("unsloth/Nemotron-3-Nano-30B-A3B", NVIDIA),
    "ada/my-nemotron-3-nano-30b-a3b": ("ada/my-nemotron-3-nano-30b-a3b", OWN),  # a fine-tune has terms of its own
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-Base-BF16": ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-Base-BF16", OWN),
    "org/other": ("org/other", OWN),
}


@pytest.mark.parametrize("model", BASES)
def test_the_base_and_its_licence(model):
    base = find_base(Policy(model=model, revision="v1"))
    assert (base.name, base.licence["license_name"]) == BASES[model] and base.revision == "v1"
    assert base.licence["license"] == "other" and base.licence["license_link"].startswith("https://")
    assert not base.is_embedded


def test_the_embedded_policy_has_no_id_on_the_hub():
    base = find_base(Policy())
    assert (base.name, base.is_embedded, base.licence) == ("grpo-kit/tiny", True, {"license": "apache-2.0"})


def test_an_nf4_checkpoint_names_the_model_and_the_commit_that_it_was_made_of(tmp_path):
    made_of = {
        "source": PUBLISHED,
        "revision": "main",
        "commit": "0a" * 20,
        "dtype": "float16",
        "count": 1,
        "parts": {},
    }
    (tmp_path / "nf4.json").write_text(json.dumps({"format": FORMAT} | made_of))
    base = find_base(Policy(model=str(tmp_path), load_in_4bit=True))
    assert (base.name, base.revision, base.is_named) == (PUBLISHED, "0a" * 20, False)
    (tmp_path / "nf4.json").write_text(
        json.dumps({"format": FORMAT} | made_of | {"source": "/data/nemo", "commit": None})
    )
    with pytest.raises(ValueError, match="The run's base is /data/nemo"):
        find_base(Policy(model=str(tmp_path)))
    assert find_base(Policy(model=str(tmp_path)), PUBLISHED)[:2] == (PUBLISHED, "main")


def test_a_local_folder_needs_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/nemo").mkdir(parents=True)
    for model in (str(tmp_path), "models/nemo", "/gone/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "a/b/c", "../x"):
        with pytest.raises(ValueError, match="--base OWNER/NAME"):
            find_base(Policy(model=model))
        assert find_base(Policy(model=model), PUBLISHED).name == PUBLISHED


@pytest.mark.parametrize("named", ["", "nano", "/data/nano", "a/b/c", "a/b?c", "a/b\n"])
def test_a_name_that_is_no_id_is_refused(named, tmp_path):
    with pytest.raises(ValueError, match="OWNER/NAME. Correct it"):
        find_base(Policy(model=str(tmp_path)), named)


def test_another_name_than_the_runs_is_refused():
    with pytest.raises(ValueError, match="Leave --base out"):
        find_base(Policy(model=PUBLISHED), "org/other")
    assert find_base(Policy(model=PUBLISHED), PUBLISHED).name == PUBLISHED
