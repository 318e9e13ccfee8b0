"""Downloads that were cut off are deleted; those in progress, and whole files, stay. Configs in the published form."""

import os

import pytest
from huggingface_hub.utils import WeakFileLock

from grpo_kit.nemotron.checkpoint_files import PublishedCheckpoint, published_config, remove_incomplete_downloads


def make_download(cache, name, age):
    """A file of a cache as the Hub's client 2.4 lays it out, last written `age` seconds ago."""
    path = cache / "models--org--name" / "blobs" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    (cache / ".locks" / "models--org--name").mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"1")
    os.utime(path, (path.stat().st_mtime - age,) * 2)
    return path


def test_what_killed_downloads_left_is_deleted_and_what_is_being_downloaded_stays(tmp_path):
    left = make_download(tmp_path, "aa.0123abcd.incomplete", 100)
    whole = make_download(tmp_path, "aa", 100)
    recent = make_download(tmp_path, "bb.0123abcd.incomplete", 10)
    locked = make_download(tmp_path, "cc.0123abcd.incomplete", 100)
    with WeakFileLock(tmp_path / ".locks" / "models--org--name" / "cc.lock"):
        remove_incomplete_downloads(tmp_path)
    assert not left.exists() and whole.exists() and recent.exists() and locked.exists()


def test_a_conversion_deletes_what_its_last_attempt_left(tmp_path):
    left = make_download(tmp_path, "aa.0123abcd.incomplete", 100)
    PublishedCheckpoint("org/name", None, tmp_path)
    assert not left.exists()
    remove_incomplete_downloads(tmp_path / "none")  # a cache that is not there yet


FIVE = ["linear_attention", "moe", "full_attention", "mlp", "moe"]
MTP = {"mtp_layers_block_type": ["full_attention", "moe"]}


@pytest.mark.parametrize(
    ("config", "published"),
    [
        ({"layers_block_type": FIVE}, {"hybrid_override_pattern": "ME*-E", "num_hidden_layers": 5}),
        # as transformers up to 5.11 names them
        (
            {"layers_block_type": ["mamba", "attention"]},
            {"hybrid_override_pattern": "M*", "num_hidden_layers": 2},
        ),
        (
            {"layers_block_type": FIVE, "num_nextn_predict_layers": 0, **MTP},
            {"num_nextn_predict_layers": 0, "hybrid_override_pattern": "ME*-E", "num_hidden_layers": 5},
        ),
        (
            {"layers_block_type": FIVE, "num_nextn_predict_layers": 1, **MTP},
            {
                "num_nextn_predict_layers": 1,
                "hybrid_override_pattern": "ME*-E",
                "num_hidden_layers": 5,
                "mtp_hybrid_override_pattern": "*E",
            },
        ),
        (
            {"layers_block_type": ["moe"], "time_step_limit": [0.0, {"__float__": "Infinity"}]},
            {"hybrid_override_pattern": "E", "num_hidden_layers": 1},
        ),
        (
            {"layers_block_type": ["moe"], "time_step_limit": [0.0, 0.5]},
            {"time_step_limit": [0.0, 0.5], "hybrid_override_pattern": "E", "num_hidden_layers": 1},
        ),
        ({"hybrid_override_pattern": "ME", **MTP}, {"hybrid_override_pattern": "ME", **MTP}),
    ],
)
def test_a_config_is_written_as_the_30b_is_published(config, published):
    config = {"model_type": "nemotron_h", **config}
    before = dict(config)
    assert published_config(config) == {"model_type": "nemotron_h", **published} and config == before


def test_another_models_config_stays_as_it_is():
    zamba = {"model_type": "zamba2", "layers_block_type": ["mamba", "hybrid"]}
    assert published_config(zamba) == zamba


def test_a_layer_without_a_letter_is_no_pattern():
    with pytest.raises(KeyError, match="sliding_attention"):
        published_config({"model_type": "nemotron_h", "layers_block_type": ["moe", "sliding_attention"]})
