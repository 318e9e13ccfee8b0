"""The base of an export: its id where one is known, never a path, and who says so."""

import json
import shutil

import pytest

from grpo_kit.config import Policy
from grpo_kit.nemotron import base_models, tiny
from grpo_kit.publishing.llama_cpp.bases import find_base, find_named

LIGHTNING = Policy(model=base_models.LIGHTNING, revision="abc")


@pytest.fixture
def local(tmp_path):
    """A folder with a base's config.json."""
    shutil.copytree(tiny.FOLDER, tmp_path / "home" / "mine")
    return str(tmp_path / "home" / "mine")


def test_a_run_s_base_is_the_recorded_one():
    assert find_base(LIGHTNING) == (base_models.LIGHTNING, base_models.LIGHTNING, "abc", [])
    assert find_base(LIGHTNING, base_models.LIGHTNING) == find_base(LIGHTNING)
    assert find_base(Policy()) == ("grpo-kit/tiny", "grpo-kit/tiny", None, [])
    mounted = find_base(Policy(model=base_models.MOUNTED_MODEL))
    assert mounted.label == mounted.source == base_models.PUBLISHED
    assert find_base(Policy(model=base_models.PUBLISHED), base_models.MOUNTED_MODEL).label == base_models.PUBLISHED


@pytest.fixture
def large(tmp_path):
    """A folder with the 30B's config.json."""
    (tmp_path / "large").mkdir()
    shutil.copy(base_models.NANO, tmp_path / "large/config.json")
    return str(tmp_path / "large")


def test_a_folder_gives_the_files_and_not_the_name(local, large):
    found = find_base(LIGHTNING, large)
    assert found[:3] == (base_models.LIGHTNING, large, "abc") and "compared by the shapes alone" in found.notes[0]
    assert find_base(Policy(), local)[:2] == ("grpo-kit/tiny", local)
    assert find_base(Policy(model="org/unknown"), local)[:2] == ("org/unknown", local)


def test_a_folder_of_other_shapes_is_not_the_model_that_it_is_said_to_hold(local, large, tmp_path):
    """Neither the files of a base that has an id, nor the id of a base that lies in a folder."""
    in_proj = r"\(out, in\) of backbone.layers.0.mixer.in_proj is"
    with pytest.raises(
        ValueError, match=rf"mine does not hold nvidia/NVIDIA-Nemotron-3.5-L.*: {in_proj} \(460, 128\) "
    ):
        find_base(LIGHTNING, local)
    for model in (base_models.NANO_4B, base_models.PUBLISHED, "unsloth/Nemotron-3-Nano-30B-A3B"):
        with pytest.raises(ValueError, match=rf"--base is '{model}', but the folder .*mine does not hold {model}: "):
            find_base(Policy(model=local), model)
    assert find_base(Policy(model=large), base_models.PUBLISHED)[:2] == (base_models.PUBLISHED, large)
    with pytest.raises(ValueError, match=r"is \(10304, 2688\) there and \(17504, 3136\) in nvidia/.*-4B-BF16. Name"):
        find_base(Policy(model=large), base_models.NANO_4B)
    deeper = json.loads((tmp_path / "home/mine/config.json").read_text())
    deeper |= {"hybrid_override_pattern": deeper["hybrid_override_pattern"] + "*", "num_hidden_layers": 5}
    (tmp_path / "home/mine/config.json").write_text(json.dumps(deeper))
    with pytest.raises(ValueError, match=r"layers.4.mixer.q_proj is \(128, 128\) there and missing in grpo-kit/tiny\."):
        find_base(Policy(), local)


def test_a_local_base_is_named_without_its_path_or_by_the_caller(local):
    assert find_base(Policy(model=local)) == ("mine", local, None, [])
    found = find_base(Policy(model=local), "org/real")
    assert found[:3] == ("org/real", local, None) and "is what its exporter says" in found.notes[0]
    assert "home" not in str(found.notes)
    gone = find_base(Policy(model="/gone/base"), "org/real")
    assert gone[:2] == ("org/real", "org/real")


@pytest.mark.parametrize("given", ["org/other", base_models.PUBLISHED, "tiny", "nowhere/at/all", ""])
def test_another_model_is_no_base_of_a_run(given):
    with pytest.raises(ValueError, match="and the run was trained on nvidia/NVIDIA-Nemotron-3.5-Lightning"):
        find_base(LIGHTNING, given)


def test_the_commit_of_an_nf4_checkpoint_counts(tmp_path, monkeypatch):
    from grpo_kit.nemotron import nf4_layout

    manifest = {"source": base_models.PUBLISHED, "revision": "main", "commit": "f00"}
    monkeypatch.setattr(nf4_layout, "is_nf4_checkpoint", lambda folder: True)
    monkeypatch.setattr(nf4_layout, "read_manifest", lambda folder: manifest)
    assert find_base(Policy(model=str(tmp_path))) == (base_models.PUBLISHED, base_models.PUBLISHED, "f00", [])


def test_a_foreign_adapter_s_base_is_somebody_s_word(tmp_path, local):
    named = find_named(tmp_path, "unsloth/Nemotron-3-Nano-30B-A3B")
    assert named.label == "unsloth/Nemotron-3-Nano-30B-A3B" and "word of its adapter_config.json" in named.notes[0]
    given = find_named(tmp_path, "unsloth/Nemotron-3-Nano-30B-A3B", local)
    assert given[:2] == ("mine", local) and "word of its exporter" in given.notes[0]
    assert find_named(tmp_path, "/home/ada/nemotron-3-nano-30b-a3b").label == base_models.PUBLISHED
    assert find_named(tmp_path, "tiny").label == "grpo-kit/tiny"
    for nothing in (None, "", 7, json.loads("[]"), "x" * 300):
        with pytest.raises(ValueError, match="names no base model. Name the one that it was trained on with --base"):
            find_named(tmp_path, nothing)
