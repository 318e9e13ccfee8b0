"""Opening an adapter folder of unknown origin: plain LoRA in safetensors is read, the rest is refused with a reason."""

import json
import pickle
import random
import re

import pytest
import torch
from safetensors.torch import save, save_file

from grpo_kit.adapters.folder import AdapterFolder

GOOD = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}


@pytest.fixture
def folder(tmp_path):
    save_file({"a.lora_A.weight": torch.arange(8.0).view(2, 4)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(GOOD))
    return tmp_path


def write_config(folder, **changes):
    (folder / "adapter_config.json").write_text(json.dumps(GOOD | changes))
    return folder


def test_each_tensor_is_read_with_the_values_and_dtype_that_were_saved(tmp_path):
    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    saved = {str(kind): torch.randn(3, 5).to(kind) for kind in kinds} | {
        "empty": torch.empty(0),
        "deep": torch.randn(2, 3, 4),
    }
    save_file(saved, tmp_path / "adapter_model.safetensors")
    source = AdapterFolder(write_config(tmp_path))
    assert set(source.entries) == set(saved)
    for key in reversed(saved):
        assert torch.equal(source.read_tensor(key), saved[key]) and source.dtype_of(key) == saved[key].dtype


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"use_dora": True}, "use_dora is True; .* Train a LoRA without DoRA"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"lora_bias": True}, "lora_bias=False"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"peft_type": "PREFIX_TUNING"}, "a LoRA has LORA. Write"),
        ({"peft_type": ["LORA"]}, "peft_type"),
        ({"use_qalora": True}, "use_qalora is set. QALoRA pools"),
        ({"alora_invocation_tokens": [1, 2]}, "An activated LoRA is on for a part"),
        ({"layer_replication": [[0, 2]]}, "layer_replication is .* Train on the published layers"),
        ({"init_lora_weights": "pissa_niter_16"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "olora"}, "changes the base"),
        ({"r": 0}, "r is 0"),
        ({"r": -4}, "r is -4"),
        ({"r": 4.5}, "r is 4.5"),
        ({"r": True}, "r is True"),
        ({"r": "4"}, "r is '4'"),
        ({"r": None}, "r is None"),
        ({"r": 10**30}, "r is 10+\\.\\.\\.|r is 10+; a rank is a whole number"),
        ({"lora_alpha": 0}, "lora_alpha is 0"),
        ({"lora_alpha": 1e300}, "lora_alpha"),
        ({"lora_alpha": [8]}, "lora_alpha"),
        ({"rank_pattern": ["q"]}, "rank_pattern is not a table"),
        ({"rank_pattern": {"q": "4"}}, "rank_pattern"),
        ({"alpha_pattern": {"q": 0}}, "alpha_pattern"),
        ({"target_parameters": "x"}, "target_parameters is 'x'; it is a list of names"),
        ({"target_parameters": [1]}, "a list of names"),
    ],
)
def test_a_config_that_is_not_a_plain_lora_is_refused(folder, changes, match):
    with pytest.raises(ValueError, match=match) as caught:
        AdapterFolder(write_config(folder, **changes))
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    # An adapter is opened to be attached, merged and exported too, where neither the challenge nor a zip matters.
    assert not re.search("scorer|vLLM|[Pp]ack", str(caught.value))


@pytest.mark.parametrize("init", [True, False, "gaussian", "eva", "orthogonal", None])
def test_initialisations_that_do_not_change_the_base_are_accepted(folder, init):
    AdapterFolder(write_config(folder, init_lora_weights=init))


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"r": NaN}', b"[" * 100_000, b'{"a":' * 50_000,
        b" " * (1 << 20) + b"{}", b'{"r": Infinity}', b"1e999",
    ],
)  # fmt: skip
def test_a_config_that_is_not_a_json_object_is_refused(folder, content):
    (folder / "adapter_config.json").write_bytes(content)
    with pytest.raises(ValueError, match="adapter_config") as caught:
        AdapterFolder(folder)
    assert len(str(caught.value)) < 600


VALID = save({"a.lora_A.weight": torch.ones(2, 4)})


def file_with_header(text, data=b""):
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        VALID[:-1],  # cut
        VALID + b"x",  # more bytes than the header announces
        VALID[:40],
        (2**63).to_bytes(8, "little") + b"{}",
        (2**31).to_bytes(8, "little") + b"{}",
        file_with_header(b"[]"),
        file_with_header(b"{"),
        file_with_header(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', b"\0" * 4),  # too few bytes
        file_with_header(b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', b"\0" * 4),
        file_with_header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}', b"\0" * 4),
        file_with_header(b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}'),
        file_with_header(b'{"a":{"dtype":"X","shape":[1],"data_offsets":[0,4]}}', b"\0" * 4),
        file_with_header(b'{"a":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}', b"\0" * 8),
        file_with_header(b'{"a":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}}', b"\0"),
        file_with_header(b'{"a":1}'),
        file_with_header(b"[" * 50_000),
        pickle.dumps({"a": 1}),
        b"PK\x03\x04" + b"\0" * 100,
    ],
)
def test_tensors_that_cannot_be_read_are_refused(folder, content):
    (folder / "adapter_model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="adapter_model") as caught:
        AdapterFolder(folder)
    assert "\n" not in str(caught.value)


def test_a_pickle_is_refused_by_name_and_never_loaded(folder):
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    with pytest.raises(FileNotFoundError, match="adapter_model.bin, a pickle"):
        AdapterFolder(folder)


def test_a_missing_file_or_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="adapter_config.json does not exist"):
        AdapterFolder(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no adapter_model.safetensors"):
        AdapterFolder(write_config(tmp_path))


def test_a_file_that_gets_shorter_after_it_was_opened_is_refused(folder):
    source = AdapterFolder(folder)
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="became shorter"):
        source.read_tensor("a.lora_A.weight")


def test_a_file_with_random_bytes_is_read_or_refused_in_one_sentence(folder):
    path, rng = folder / "adapter_model.safetensors", random.Random(7)
    data = path.read_bytes()
    for _ in range(400):
        broken = bytearray(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.3 else data)
        for _ in range(rng.randint(0, 4)):
            if broken:
                broken[rng.randrange(len(broken))] = rng.randrange(256)
        path.write_bytes(bytes(broken))
        try:
            source = AdapterFolder(folder)
            for key in source.entries:
                source.read_tensor(key)
        except ValueError as error:
            assert "\n" not in str(error) and len(str(error)) < 600
