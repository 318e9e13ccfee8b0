"""Downloads that were cut off are deleted; those in progress, and whole files, stay. Configs in the published form."""

import os
import time

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import WeakFileLock

from grpo_kit.nemotron import convert, nf4_layout, tiny
from grpo_kit.nemotron.checkpoint_files import PublishedCheckpoint, published_config, remove_incomplete_downloads
from tests.helpers import processes
from tests.helpers.fake_hub import COMMIT, CONNECT, FakeHub


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
    left = make_download(tmp_path, "aa.0123abcd.incomplete", 0)  # killed a moment ago
    locked = make_download(tmp_path, "cc.0123abcd.incomplete", 0)
    with WeakFileLock(tmp_path / ".locks" / "models--org--name" / "cc.lock"):
        PublishedCheckpoint("org/name", None, tmp_path)
    assert not left.exists() and locked.exists()
    remove_incomplete_downloads(tmp_path / "none")  # a cache that is not there yet


# Against huggingface_hub itself, with a server on loopback


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The embedded policy in several shards."""
    from transformers import NemotronHForCausalLM

    folder = tmp_path_factory.mktemp("published")
    NemotronHForCausalLM.from_pretrained(tiny.FOLDER).save_pretrained(folder, max_shard_size="400KB")
    return folder


@pytest.fixture
def hub(published, monkeypatch):
    fake = FakeHub(published, "org/model")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "ENDPOINT", fake.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    template = fake.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield fake
    fake.close()


def test_the_hubs_client_downloads_shard_by_shard_and_reports_its_bytes(hub, published, tmp_path):
    calls = []
    out = convert.convert_to_nf4("org/model", tmp_path / "nf4", "float32", progress=lambda *call: calls.append(call))
    shards = sorted(path.name for path in published.glob("*.safetensors"))
    assert [name for name in hub.sent if name in shards] == shards
    assert nf4_layout.verify_checkpoint(out, check_hashes=True)["commit"] == COMMIT
    assert not (out / ".download").exists()
    dones, total = [done for done, _, _ in calls], calls[0][1]
    assert dones == sorted(dones) and dones[0] == 0 and dones[-1] == pytest.approx(total) and len(dones) > 1000
    first = [done for done, _, words in calls if words == f"part 1 of {len(shards)}"]
    halfway = first[-1] / 2  # the download is one half of a part, and was reported in pieces of 1,000 bytes
    assert halfway in first and sum(done < halfway for done in first) > 100


@pytest.mark.slow
@pytest.mark.parametrize("xet", [False, True], ids=["http", "hf_xet"])
def test_what_a_killed_download_left_is_deleted_before_the_next_begins(hub, published, tmp_path, xet):
    """The client does not continue it: the shard comes again from its beginning, those before it do not."""
    first, second, *_ = shards = sorted(path.name for path in published.glob("*.safetensors"))
    hub.hold, out = second, tmp_path / "nf4"
    if xet:
        hub.hold, hub.xet = "", True
        first, second = "", first
    code = CONNECT.format(hub.url) + (
        f"from grpo_kit.nemotron.convert import convert_to_nf4\nconvert_to_nf4('org/model', {str(out)!r}, 'float32')"
    )
    child = processes.start(["-c", code])
    assert hub.held.wait(60), child.communicate()
    [left] = wait_for(lambda: list(out.glob(".download/*/blobs/*.incomplete")))
    if not xet:
        wait_for(lambda: left.stat().st_size > 1000)
    child.kill()
    child.wait(30)
    assert left.exists()
    hub.hold, hub.xet, earlier = "", False, len(hub.sent)
    seen = []

    def look(done, total, words):
        seen.append(left.exists())

    convert.convert_to_nf4("org/model", out, "float32", progress=look)
    assert not any(seen) and not (out / ".download").exists()
    assert [name for name in hub.sent[earlier:] if name in shards] == [name for name in shards if name != first]
    assert nf4_layout.verify_checkpoint(out, check_hashes=True)


def wait_for(look):
    deadline = time.monotonic() + 30
    while not (found := look()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


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
