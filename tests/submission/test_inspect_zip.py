"""The check of many kinds of submissions: which findings each must have, and which it must not have."""

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from safetensors.torch import save as torch_save

from grpo_kit.adapters.findings import Refused, fatal
from grpo_kit.nemotron import base_models
from grpo_kit.submission import inspect_zip
from tests.helpers.submissions import ALL, CONFIG, KEY, TENSORS, config, submission, tensors


def containing(*parts):
    return lambda key: any(part in key for part in parts)


def change_tensors(is_selected, change):
    """A function of tensors that applies `change` to those whose key `is_selected`."""
    return lambda values: {key: change(value) if is_selected(key) else value for key, value in values.items()}


def rename_keys(old, new):
    return lambda values: {key.replace(old, new): value for key, value in values.items()}


def remove(*parts):
    return lambda values: {key: value for key, value in values.items() if not containing(*parts)(key)}


def add_tensor(key, shape, dtype="f4"):
    return lambda values: values | {key: np.ones(shape, dtype)}


def stack_experts(values):
    """The routed experts as PEFT's target_parameters saves them."""
    rest = remove(".experts.")(values)
    stem = KEY + "1.mixer.experts"
    return rest | {f"{stem}.lora_A.weight": np.ones((32, 64), "f4"), f"{stem}.lora_B.weight": np.ones((128, 32), "f4")}


def stack_last(values):
    return {k: v[None].transpose(1, 2, 0) if ".experts." in k and "lora_B" in k else v for k, v in values.items()}


def cast(dtype):
    return lambda values: {key: value.astype(dtype) for key, value in values.items()}


to_zero, B = (lambda value: value * 0), "lora_B"
SHARED = ["shared_experts.up_proj", "shared_experts.down_proj"]
MAC = {"__MACOSX/._adapter_config.json": b"\0\5\26\7"}

FATAL = {  # change to a sound submission: (arguments of `submission`, code of the finding)
    # files in the zip
    "no config": ({"members": {CONFIG: None}}, "no-config"),
    "a config in capitals": ({"members": {CONFIG: None, "Adapter_Config.json": config()}}, "no-config"),
    "a config with another end": ({"members": {CONFIG: None, CONFIG + ".txt": config()}}, "no-config"),
    "a config in a hidden folder": ({"members": {CONFIG: None, ".hidden/" + CONFIG: config()}}, "no-config"),
    "a zip in the zip": ({"members": {CONFIG: None, TENSORS: None, "submission.zip": b"PK"}}, "no-config"),
    "nothing": ({"members": {CONFIG: None, TENSORS: None}}, "no-config"),
    "two configs": ({"members": {"checkpoint-10/" + CONFIG: config()}}, "two-configs"),
    "no tensors": ({"members": {TENSORS: None}}, "no-tensors"),
    "tensors by another name": (
        {"members": {TENSORS: None, "model.safetensors": save(tensors(config()))}},
        "no-tensors",
    ),
    "tensors in another folder": (
        {"members": {TENSORS: None, "adapter/" + TENSORS: save(tensors(config()))}},
        "no-tensors",
    ),
    "shards": ({"members": {TENSORS: None, "adapter_model-00001-of-00002.safetensors": b""}}, "no-tensors"),
    "a pickle": ({"members": {TENSORS: None, "adapter_model.bin": b"\x80\x04K\x01."}}, "pickle"),
    "an older pickle": ({"members": {TENSORS: None, "adapter_model.pt": b"PK"}}, "pickle"),
    "a climbing name": ({"members": {"../evil": b""}}, "unsafe-path"),
    # the config's text
    "an empty config": ({"members": {CONFIG: b""}}, "config-unreadable"),
    "no JSON": ({"members": {CONFIG: b"r: 32"}}, "config-unreadable"),
    "a list": ({"members": {CONFIG: b"[]"}}, "config-unreadable"),
    "null": ({"members": {CONFIG: b"null"}}, "config-unreadable"),
    "a byte order mark": ({"members": {CONFIG: b"\xef\xbb\xbf" + json.dumps(config()).encode()}}, "config-unreadable"),
    "UTF-16": ({"members": {CONFIG: json.dumps(config()).encode("utf-16")}}, "config-unreadable"),
    "nested without end": ({"members": {CONFIG: b'{"r":' * 100_000}}, "config-unreadable"),
    "a megabyte of config": ({"members": {CONFIG: b" " * (1 << 20) + b"{}"}}, "too-large"),
    "cut off": ({"members": {CONFIG: json.dumps(config()).encode()[:-1]}}, "config-unreadable"),
    # the config's fields
    "an empty object": ({"members": {CONFIG: b"{}"}}, "rank"),
    "rank 33": ({"change": {"r": 33}}, "rank-too-high"),
    "rank 64": ({"change": {"r": 64}}, "rank-too-high"),
    "rank 0": ({"config_only": {"r": 0}}, "rank"),
    "rank -1": ({"config_only": {"r": -1}}, "rank"),
    "rank as text": ({"config_only": {"r": "32"}}, "rank"),
    "rank as a fraction": ({"config_only": {"r": 4.5}}, "rank"),
    "rank as a boolean": ({"config_only": {"r": True}}, "rank"),
    "no rank": ({"config_only": {"r": ...}}, "rank"),
    "rank not a number": ({"members": {CONFIG: json.dumps(config(r=float("nan")))}}, "rank"),
    "a pattern over 32": ({"change": {"rank_pattern": {"q_proj": 64}}}, "rank-pattern-too-high"),
    "a pattern of text": ({"config_only": {"rank_pattern": {"q_proj": "8"}}}, "rank-pattern-invalid"),
    "a pattern that is a list": ({"config_only": {"rank_pattern": ["q_proj"]}}, "rank-pattern-invalid"),
    "alpha 0": ({"change": {"lora_alpha": 0}}, "alpha"),
    "alpha -8": ({"change": {"lora_alpha": -8}}, "alpha"),
    "an absurd alpha": ({"change": {"lora_alpha": 1e7}}, "alpha"),
    "an absurd rank": ({"config_only": {"r": 10**30}}, "rank"),
    "another rank than the first pattern that matches": (
        {"change": {"rank_pattern": {"q_proj": 2}}, "config_only": {"rank_pattern": {".*q_proj": 4, "q_proj": 2}}},
        "shape-rank",
    ),
    "a rank that no part of an expression gives": (
        {"config_only": {"r": 8, "rank_pattern": {"(q|k)_proj": 2}}},
        "shape-rank",
    ),
    "names that vLLM does not know": (
        {"edit": rename_keys("model.backbone.", "model.model.backbone.")},
        "module-unknown",
    ),
    "alpha as text": ({"change": {"lora_alpha": "8"}}, "alpha"),
    "alpha infinite": ({"members": {CONFIG: json.dumps(config(lora_alpha=float("inf")))}}, "alpha"),
    "no alpha": ({"change": {"lora_alpha": ...}}, "alpha"),
    "no targets": ({"config_only": {"target_modules": ...}}, "targets"),
    "null targets": ({"config_only": {"target_modules": None}}, "targets"),
    "an empty list of targets": ({"config_only": {"target_modules": []}}, "targets"),
    "targets that are numbers": ({"config_only": {"target_modules": [1]}}, "targets"),
    "DoRA": ({"change": {"use_dora": True}}, "dora"),
    "bias": ({"change": {"bias": "all"}}, "bias"),
    "bias of LoRA": ({"change": {"bias": "lora_only"}}, "bias"),
    "LoRA's own bias": ({"change": {"lora_bias": True}}, "bias"),
    "modules to save": ({"change": {"modules_to_save": ["lm_head"]}}, "modules-to-save"),
    "new tokens": ({"change": {"trainable_token_indices": [1]}}, "tokens"),
    "layers repeated": ({"change": {"layer_replication": [[0, 2]]}}, "layer-replication"),
    "LoHa": ({"change": {"peft_type": "LOHA"}}, "peft-type"),
    "prompt tuning": ({"change": {"peft_type": "PROMPT_TUNING"}}, "peft-type"),
    # the base
    "another model": ({"change": {"base_model_name_or_path": "Qwen/Qwen3-4B"}}, "wrong-base"),
    "another Nemotron": ({"change": {"base_model_name_or_path": "nvidia/NVIDIA-Nemotron-Nano-9B-v2"}}, "wrong-base"),
    "the pretrained one": (
        {"change": {"base_model_name_or_path": "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-Base-BF16"}},
        "wrong-base",
    ),
    "another on Kaggle": ({"change": {"base_model_name_or_path": "qwen-lm/qwen-3/transformers/4b/1"}}, "wrong-base"),
    "the 30B's name over the tiny's tensors": ({"change": {"base_model_name_or_path": base_models.PUBLISHED}}, "shape"),
    # targets and tensors
    "targets that match nothing": ({"change": {"target_modules": ["gate_proj"]}}, "target-unmatched"),
    "the router alone": ({"change": {"target_modules": ["gate"]}}, "target-unmatched"),
    "tensors on gate_proj": (
        {"edit": add_tensor(KEY + "1.mixer.shared_experts.gate_proj.lora_A.weight", (4, 128))},
        "module-unknown",
    ),
    "tensors on the router": ({"edit": add_tensor(KEY + "1.mixer.gate.lora_A.weight", (4, 128))}, "module-unknown"),
    "tensors on a convolution": (
        {"edit": add_tensor(KEY + "0.mixer.conv1d.lora_A.weight", (4, 128))},
        "module-unknown",
    ),
    "Tinker's x_proj": ({"edit": rename_keys("in_proj", "x_proj")}, "module-unknown"),
    "Llama's names": ({"edit": rename_keys("mixer", "self_attn")}, "module-unknown"),
    "a layer too many": ({"edit": rename_keys("layers.3.", "layers.4.")}, "module-unknown"),
    "an expert too many": ({"edit": rename_keys("experts.7.", "experts.8.")}, "module-unknown"),
    "experts as w1 and w2": (
        {"edit": lambda v: rename_keys("up_proj", "w1")(rename_keys("down_proj", "w2")(v))},
        "keys-fused",
    ),
    "Unsloth's gate_up_proj": (
        {"edit": add_tensor(KEY + "1.mlp.experts.gate_up_proj.lora_A.weight", (4, 128))},
        "keys-fused",
    ),
    "stacks of experts": ({"edit": stack_experts}, "keys-stacked"),
    "PEFT's base_layer": (
        {"edit": add_tensor(KEY + "1.mixer.experts.base_layer.lora_B.weight", (64, 32))},
        "keys-stacked",
    ),
    "an adapter's name in the keys": ({"edit": rename_keys(".weight", ".default.weight")}, "keys-adapter-name"),
    "keys without .weight": ({"edit": rename_keys(".weight", "")}, "keys-adapter-name"),
    "no prefix": ({"edit": rename_keys("base_model.model.", "")}, "keys-prefix"),
    "magnitudes": ({"edit": add_tensor(KEY + "2.mixer.q_proj.lora_magnitude_vector.weight", (128,))}, "keys-dora"),
    "biases": ({"edit": add_tensor(KEY + "2.mixer.q_proj.lora_B.bias", (128,))}, "keys-bias"),
    "embeddings": (
        {"edit": add_tensor("base_model.model.backbone.embeddings.lora_embedding_A", (4, 272))},
        "keys-embedding",
    ),
    "a whole head": ({"edit": add_tensor("base_model.model.lm_head.weight", (272, 128))}, "keys-whole"),
    "a merged model": (
        {"edit": lambda _: {"backbone.layers.0.mixer.in_proj.weight": np.ones((4, 4), "f4")}},
        "keys-whole",
    ),
    "an optimiser": ({"edit": add_tensor("step", (1,))}, "keys-unknown"),
    "a key of nothing": ({"edit": add_tensor("", (1,))}, "keys-unknown"),
    "both prefixes": ({"edit": lambda v: v | rename_keys("backbone", "model")(v)}, "keys-twice"),
    "no tensor at all": ({"edit": lambda _: {}}, "no-tensors"),
    "one tensor missing": ({"edit": remove("layers.2.mixer.q_proj.lora_A")}, "tensors-missing"),
    "its half without the other": ({"edit": remove("layers.2.mixer.q_proj.lora_A")}, "pair-broken"),
    "an expert missing": ({"edit": remove("experts.3.")}, "tensors-missing"),
    "some experts' down_proj missing, unannounced": (
        {"edit": remove("experts.3.down"), "config_only": {"target_modules": "(.)+_proj"}},
        "experts-partial",
    ),
    "a few experts, as announced": (
        {"change": {"target_modules": ["experts.0.up_proj", "experts.0.down_proj"]}},
        "experts-partial",
    ),
    "up_proj alone": ({"change": {"target_modules": ["up_proj"]}}, "experts-partial"),
    "experts of two ranks by pattern": ({"change": {"rank_pattern": {"experts.3.up_proj": 2}}}, "experts-ranks"),
    "all routed experts missing": ({"edit": remove(".experts.")}, "tensors-missing"),
    "a layer missing": ({"edit": remove("layers.0.")}, "tensors-missing"),
    "transposed": (
        {"edit": change_tensors(containing("q_proj"), lambda v: np.ascontiguousarray(v.T))},
        "shape-transposed",
    ),
    "a half transposed": (
        {"edit": change_tensors(containing("k_proj.lora_A"), lambda v: np.ascontiguousarray(v.T))},
        "shape-transposed",
    ),
    "(out, r, E)": ({"edit": stack_last}, "shape-stacked"),
    "(E, r, in)": (
        {"edit": change_tensors(containing("experts.0.up_proj.lora_A"), lambda v: np.stack([v] * 8))},
        "shape-stacked",
    ),
    "(out, r E)": (
        {"edit": change_tensors(containing("experts.0.up_proj.lora_B"), lambda v: np.tile(v, 8))},
        "shape-rank",
    ),
    "up for down": (
        {
            "edit": lambda v: rename_keys("\0", "up_proj")(
                rename_keys("up_proj", "down_proj")(rename_keys("down_proj", "\0")(v))
            )
        },
        "shape",
    ),
    "A for B": (
        {
            "edit": lambda v: rename_keys("\0", "lora_A")(
                rename_keys("lora_A", "lora_B")(rename_keys("lora_B", "\0")(v))
            )
        },
        "shape",
    ),
    "a vector": ({"edit": change_tensors(containing("v_proj.lora_A"), lambda v: v[0])}, "shape"),
    "a scalar": ({"edit": change_tensors(containing("v_proj.lora_A"), lambda v: np.array(v[0, 0]))}, "shape"),
    "another rank than the config's": ({"config_only": {"r": 8}}, "shape-rank"),
    "one tensor of another rank": (
        {"edit": change_tensors(containing("2.mixer.q_proj"), lambda v: v[:2] if v.shape[0] == 4 else v[:, :2])},
        "shape-rank",
    ),
    "rank 0 tensors": ({"edit": change_tensors(containing("q_proj.lora_A"), lambda v: v[:0])}, "zero-size"),
    "an empty w3": ({"edit": add_tensor(KEY + "1.mixer.experts.w3.lora_A.weight", (0, 128))}, "keys-fused"),
    "shared experts alone": ({"change": {"target_modules": SHARED}}, "nothing-used"),
    "rsLoRA on routed experts": ({"change": {"use_rslora": True}}, "rslora-experts"),
    # values
    "NaN": ({"edit": change_tensors(containing("q_proj.lora_A"), lambda v: v * np.float32("nan"))}, "not-finite"),
    "one infinity": (
        {"edit": change_tensors(containing("in_proj.lora_B"), lambda v: np.where(v == v.max(), np.float32("inf"), v))},
        "not-finite",
    ),
    "all zero": ({"edit": change_tensors(containing(""), to_zero)}, "dead-all"),
    "lora_B never moved": ({"edit": change_tensors(containing(B), to_zero)}, "dead-all"),
    "one lora_B zero": ({"edit": change_tensors(containing("q_proj.lora_B"), to_zero)}, "dead-pairs"),
    "one lora_A zero": ({"edit": change_tensors(containing("k_proj.lora_A"), to_zero)}, "dead-pairs"),
    "all routed experts zero": (
        {"edit": lambda v: {k: x * 0 if ".experts." in k and B in k else x for k, x in v.items()}},
        "dead-pairs",
    ),
    # types
    "8-bit integers": ({"edit": cast("i1")}, "dtype"),
    "32-bit integers": ({"edit": cast("i4")}, "dtype"),
    "truth": ({"edit": cast("?")}, "dtype"),
    "one tensor of integers": (
        {"edit": change_tensors(containing("q_proj.lora_A"), lambda v: np.ones(v.shape, "i8"))},
        "dtype",
    ),
    # the file
    "no safetensors": ({"members": {TENSORS: b"\x80\x04K\x01." * 20}}, "not-safetensors"),
    "an empty file": ({"members": {TENSORS: b""}}, "not-safetensors"),
    "a pointer of Git LFS": (
        {"members": {TENSORS: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"}},
        "not-safetensors",
    ),
    "cut off in the middle": ({"members": {TENSORS: save(tensors(config()))[:-100]}}, "not-safetensors"),
    "longer than its header says": ({"members": {TENSORS: save(tensors(config())) + b"x"}}, "not-safetensors"),
}

WARNING = {  # changes after which a submission still loads: (arguments of `submission`, code of the warning)
    "a folder": (
        {
            "members": {
                CONFIG: None,
                TENSORS: None,
                "adapter/" + CONFIG: config(),
                "adapter/" + TENSORS: save(tensors(config())),
            }
        },
        "nested",
    ),
    "tokenizer and template": (
        {"members": {"tokenizer.json": b"{}", "chat_template.jinja": b"", "README.md": b""}},
        "ignored-files",
    ),
    "what a Mac adds": ({"members": MAC}, "ignored-files"),
    "a checkpoint's pickles": ({"members": {"training_args.bin": b"", "optimizer.pt": b""}}, "pickle-ignored"),
    "an expression": (
        {"members": {CONFIG: config(target_modules=r".*\.(in_proj|out_proj|up_proj|down_proj|[qkvo]_proj)$")}},
        "targets-regex",
    ),
    "all-linear": ({"config_only": {"target_modules": "all-linear"}}, "targets-regex"),
    "an expression that never ends": (
        {"members": {CONFIG: config(target_modules="(a+)+" * 100 + "$")}},
        "targets-regex",
    ),
    "gate_proj among others": ({"change": {"target_modules": [*ALL, "gate_proj"]}}, "target-unmatched"),
    "the router among others": ({"change": {"target_modules": [*ALL, "gate"]}}, "target-unmatched"),
    "a head that is not announced": (
        {"edit": lambda v: v | tensors(config(target_modules=["lm_head"]))},
        "tensors-extra",
    ),
    "lower ranks by pattern": ({"change": {"rank_pattern": {"q_proj": 2}}}, "rank-pattern"),
    "a pattern of expressions": ({"change": {"rank_pattern": {".*q_prox": 2}}}, "rank-pattern"),
    "an expression with .* in a pattern": ({"change": {"r": 8, "rank_pattern": {".*q_proj": 4}}}, "rank-pattern"),
    "a pattern that is not evaluated": (
        {"change": {"r": 4}, "config_only": {"r": 8, "rank_pattern": {"([qkvo]|in|out|up|down)_proj": 4}}},
        "pattern-expression",
    ),
    "Arrow": ({"change": {"arrow_config": {"top_k": 1}}}, "not-plain-lora"),
    "lower case": ({"change": {"peft_type": "lora"}}, "peft-type-missing"),
    "an alpha_pattern that is a list": ({"change": {"alpha_pattern": ["q_proj"]}}, "alpha-pattern-invalid"),
    "target_parameters that are text": ({"change": {"target_parameters": "q_proj"}}, "target-parameters-invalid"),
    "other alphas by pattern": ({"change": {"alpha_pattern": {"q_proj": 2}}}, "alpha-pattern"),
    "a strong alpha": ({"change": {"lora_alpha": 512}}, "alpha-odd"),
    "a weak alpha": ({"change": {"lora_alpha": 0.01}}, "alpha-odd"),
    "rsLoRA": ({"change": {"use_rslora": True, "target_modules": ["q_proj", "in_proj"]}}, "rslora"),
    "shared experts beside others": ({"change": {"target_modules": [*SHARED, "q_proj"]}}, "partly-used"),
    "not for inference": ({"change": {"inference_mode": False}}, "inference-mode"),
    "no inference_mode": ({"change": {"inference_mode": ...}}, "inference-mode"),
    "no peft_type": ({"change": {"peft_type": ...}}, "peft-type-missing"),
    "Unsloth's mapping": ({"change": {"auto_mapping": {"unsloth_fixed": True}}}, "leftovers"),
    "target parameters": ({"change": {"target_parameters": ["mixer.experts.up_proj"]}}, "leftovers"),
    "QALoRA": ({"change": {"use_qalora": True}}, "not-plain-lora"),
    "a field of another tool": ({"change": {"unsloth_version": "2026.5"}}, "leftovers"),
    "PiSSA": ({"change": {"init_lora_weights": "pissa_niter_16"}}, "init-changes-base"),
    "a field twice": ({"members": {CONFIG: json.dumps(config())[:-1] + ', "r": 4}'}}, "config-odd"),
    "NaN in an unused field": ({"members": {CONFIG: json.dumps(config(lora_dropout=float("nan")))}}, "config-odd"),
    "64-bit floats": ({"edit": cast("f8")}, "dtype-wide"),
    "types mixed": ({"edit": change_tensors(containing("lora_A"), lambda v: v.astype("f2"))}, "dtype-mixed"),
    "Mamba's out_proj dead": (
        {"edit": lambda v: {k: x * 0 if "out_proj.lora_B" in k else x for k, x in v.items()}},
        "dead-out-proj",
    ),
    "an expert no token chose": (
        {"edit": change_tensors(containing("experts.3.up_proj.lora_B"), to_zero)},
        "dead-experts",
    ),
    "absurd values": ({"edit": change_tensors(containing("q_proj.lora_A"), lambda v: v + 1e6)}, "values-large"),
    "a head under the backbone": (
        {
            "change": {"target_modules": [*ALL, "lm_head"]},
            "edit": rename_keys("model.lm_head", "model.backbone.lm_head"),
        },
        "lm-head-name",
    ),
    "the head's weight beside its LoRA": (
        {
            "change": {"target_modules": [*ALL, "lm_head"]},
            "edit": add_tensor("base_model.model.lm_head.base_layer.weight", (272, 128)),
        },
        "base-weight",
    ),
}

SOUND = {
    "as packed": {},
    "deflated": {"compression": zipfile.ZIP_DEFLATED},
    "in half precision": {"dtype": "float16"},
    "transformers' names": {"root": "model."},
    "with the head": {"change": {"target_modules": [*ALL, "lm_head"]}},
    "attention alone": {"change": {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}},
    "rank 32": {"change": {"r": 32, "lora_alpha": 32}},
    "rank 1": {"change": {"r": 1, "lora_alpha": 1.5}},
    "the bare config": {
        "members": {
            CONFIG: {
                k: config()[k]
                for k in ("peft_type", "r", "lora_alpha", "target_modules", "base_model_name_or_path", "inference_mode")
            }
        }
    },
    "full names for targets": {
        "change": {"target_modules": [name for name in base_models.lora_modules("tiny") if "proj" in name]}
    },
    "two targets": {"change": {"target_modules": ["in_proj", "out_proj"]}},
}


def codes(findings, *severities):
    return [finding.code for finding in findings if not severities or finding.severity in severities]


@pytest.fixture(autouse=True)
def scratch(tmp_path_factory, monkeypatch):
    """The folder in which temporary folders are made; it must be empty after the test."""
    import torch._inductor.compile_fx  # noqa: F401 (its import makes a folder in the temporary one)

    folder = tmp_path_factory.mktemp("scratch")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


def inspect(path):
    """The findings, after checking what holds for all: printable text, a remedy, and no file left behind."""
    before = sorted(path.parent.iterdir())
    findings = inspect_zip.inspect_submission(path)
    assert sorted(path.parent.iterdir()) == before
    for finding in findings:
        assert (finding.what + finding.scorer + finding.remedy).isprintable(), finding
        assert finding.severity == "ok" or finding.code == "base-tiny" or (finding.scorer and finding.remedy), finding
        assert len(finding.what) < 700
    return findings


@pytest.mark.parametrize("name", FATAL)
def test_a_submission_that_would_fail_gets_a_fatal_finding(tmp_path, name):
    options, code = FATAL[name]
    findings = inspect(submission(tmp_path / "submission.zip", **options))
    assert code in codes(findings, "fatal") and fatal(findings), findings


@pytest.mark.parametrize("name", WARNING)
def test_a_submission_that_loads_but_looks_odd_gets_a_warning(tmp_path, name):
    options, code = WARNING[name]
    findings = inspect(submission(tmp_path / "submission.zip", **options))
    assert code in codes(findings, "warning") and not fatal(findings), findings


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_submission_gets_no_warning(tmp_path, name):
    findings = inspect(submission(tmp_path / "submission.zip", **SOUND[name]))
    shared = name not in ("attention alone", "two targets")  # these have no shared experts, which the scorer drops
    assert codes(findings) == ["base-tiny", *["partly-used"] * shared, "archive", "tensors", "values"], findings


def test_what_the_scorer_drops_is_counted_in_parameters_and_percent(tmp_path):
    """q_proj of the tiny policy is (128, 128), its shared expert (64, 128) and (128, 64): A and B of rank 4."""
    findings = inspect(submission(tmp_path / "a.zip", {"target_modules": ["q_proj", *SHARED]}))
    modules = base_models.lora_modules("tiny")
    shared = sum(4 * sum(shape) for name, shape in modules.items() if ".shared_experts." in name)
    (finding,) = [finding for finding in findings if finding.code == "partly-used"]
    total, share = shared + 1024, f"{100 * shared / (shared + 1024):.0f} %"
    assert finding.what == f"{shared:,} of {total:,} LoRA parameters ({share}) are on shared experts."
    assert f"uses 1,024 of {total:,}" in finding.scorer and "in_proj, out_proj" in finding.remedy


def test_missing_tensors_are_found_when_targets_are_a_simple_expression(tmp_path):
    """The expression of the official demo is simple enough to read, so a tensor that it announces must be there."""
    expression = r".*\.(in_proj|out_proj|up_proj|down_proj)$"
    options = {
        "change": {"target_modules": ["in_proj", "out_proj", "up_proj", "down_proj"]},
        "config_only": {"target_modules": expression},
    }
    assert not fatal(inspect(submission(tmp_path / "a.zip", **options)))
    cut = inspect(submission(tmp_path / "b.zip", **options, edit=remove("experts.3.up_proj")))
    assert codes(cut, "fatal") == ["tensors-missing", "experts-partial"]


BASES = [  # base_model_name_or_path, the base that the caller gives, code and severity of the finding
    (base_models.PUBLISHED, None, "base", "ok"),
    ("metric/nemotron-3-nano-30b-a3b-bf16/transformers/default", None, "base", "ok"),
    ("/kaggle/input/models/metric/nemotron-3-nano-30b-a3b-bf16/transformers/default/1", None, "base", "ok"),
    ("unsloth/Nemotron-3-Nano-30B-A3B", None, "base-name", "warning"),
    ("me/nemotron-3-nano-30b-a3b-merged", None, "base-name", "warning"),
    ("/content/model", None, "base-unknown", "warning"),
    ("./model", None, "base-unknown", "warning"),
    ("model", None, "base-unknown", "warning"),
    ("", None, "base-unknown", "warning"),
    (None, None, "base-unknown", "warning"),
    (7, None, "base-unknown", "warning"),
    ("Qwen/Qwen3-4B", None, "wrong-base", "fatal"),
    (base_models.TINY, None, "base-tiny", "warning"),
    (base_models.TINY, "tiny", "base-tiny", "warning"),
    (base_models.TINY, base_models.PUBLISHED, "wrong-base", "fatal"),
    (base_models.PUBLISHED, "tiny", "wrong-base", "fatal"),
    (None, "tiny", "base-unknown", "warning"),
    ("Qwen/Qwen3-4B", "tiny", "wrong-base", "fatal"),
]


@pytest.mark.parametrize(("base_name", "base", "code", "severity"), BASES)
def test_the_base_is_the_given_one_then_the_named_one_then_the_scorers(tmp_path, base_name, base, code, severity):
    fits = "tiny" if base == "tiny" or (base is None and base_name == base_models.TINY) else base_models.PUBLISHED
    change = {"base_model_name_or_path": base_name, "target_modules": ["q_proj"], "r": 1}
    findings = inspect_zip.inspect_submission(submission(tmp_path / "x.zip", change=change, base=fits), base)
    assert (code, severity) in [(finding.code, finding.severity) for finding in findings]
    assert bool(fatal(findings)) == (severity == "fatal")


def test_a_local_folder_is_recognised_as_a_base_by_its_config(tmp_path):
    from grpo_kit.nemotron import tiny

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text((tiny.FOLDER / "config.json").read_text())
    folder = str(tmp_path / "model")
    for base_name, code in ((folder, "base"), (base_models.TINY, "base"), ("Qwen/Qwen3-4B", "wrong-base")):
        path = submission(tmp_path / "x.zip", change={"base_model_name_or_path": base_name})
        assert code in codes(inspect_zip.inspect_submission(path, folder))
    path = submission(tmp_path / "x.zip", change={"base_model_name_or_path": folder})
    assert "shape" in codes(
        inspect_zip.inspect_submission(path)
    )  # a path from a zip is not opened, so the 30B counts as the base


def test_files_are_checked_without_the_libraries_that_take_seconds_to_import(tmp_path):
    """By the command line, which loads the base only where its weights are at hand."""
    change = {"base_model_name_or_path": base_models.PUBLISHED, "target_modules": ["q_proj"]}
    path = submission(tmp_path / "submission.zip", change, base=base_models.PUBLISHED)
    code = f"""
import sys
from grpo_kit.cli.main import app
from typer.testing import CliRunner
result = CliRunner().invoke(app, ["check", {str(path)!r}])
assert result.exit_code == 0 and "pairs are non-zero" in result.output, result.output
sys.exit(" ".join({{"torch", "transformers", "peft", "bitsandbytes", "pandas", "matplotlib"}} & set(sys.modules)) or 0)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_a_complete_adapter_of_the_30b_model_is_sound(tmp_path):
    """Exactly 12,008 tensors for all linear layers, and 12,010 with the head."""
    change = {
        "base_model_name_or_path": base_models.PUBLISHED,
        "target_modules": [*ALL, "lm_head"],
        "r": 1,
        "lora_alpha": 2,
    }
    values = tensors(config(**change), base_models.PUBLISHED, dtype="float16")

    def inspect(edit, targets):
        config_only = change | {"target_modules": targets}
        return inspect_zip.inspect_submission(
            submission(tmp_path / "x.zip", edit=lambda _: edit(values), config_only=config_only)
        )

    for edit, targets, count in ((remove("lm_head"), ALL, "12,008"), (dict, [*ALL, "lm_head"], "12,010")):
        findings = inspect(edit, targets)
        assert (
            codes(findings) == ["partly-used", "archive", "base", "tensors", "values"]
            and f"{count} LoRA tensors" in findings[3].what
        )
    missing, partial = [f for f in inspect(remove("lm_head", ".experts.127."), ALL) if f.severity == "fatal"]
    assert (
        partial.code == "experts-partial"
        and missing.code == "tensors-missing"
        and "92 of 12,008 tensors" in missing.what
    )


def test_a_missing_file_or_unknown_base_raises(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.zip is not a file"):
        inspect_zip.inspect_submission(tmp_path / "none.zip")
    with pytest.raises(FileNotFoundError, match="is not a file"):
        inspect_zip.inspect_submission(tmp_path)
    with pytest.raises(FileNotFoundError, match="not a known base model"):
        inspect_zip.inspect_submission(submission(tmp_path / "x.zip"), "no/such")


def test_a_large_zip_gets_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(inspect_zip, "LARGEST_ACCEPTED", 1000)
    assert "size" in codes(inspect_zip.inspect_submission(submission(tmp_path / "x.zip")), "warning")


def test_damage_in_an_unused_file_of_the_zip_is_fatal(tmp_path):
    path = submission(tmp_path / "x.zip", members={"README.md": b"a readme" * 50})
    data = bytearray(path.read_bytes())
    data[data.find(b"a readme")] ^= 1
    path.write_bytes(data)
    assert codes(inspect_zip.inspect_submission(path)) == ["not-a-zip"]


@pytest.mark.parametrize(
    ("dtype", "code"),
    [(torch.bfloat16, None), (torch.float8_e4m3fn, "dtype"), (torch.float8_e5m2, "dtype"), (torch.complex64, "dtype")],
)
def test_dtypes_that_numpy_does_not_have(tmp_path, dtype, code):
    values = {key: torch.from_numpy(value).to(dtype) for key, value in tensors(config()).items()}
    findings = inspect(submission(tmp_path / "x.zip", members={TENSORS: torch_save(values)}))
    assert codes(findings, "fatal") == ([code] if code else []), findings


def test_findings_are_sorted_by_severity(tmp_path):
    path = submission(tmp_path / "x.zip", change={"r": 4, "inference_mode": False}, edit=remove("q_proj"))
    severities = [finding.severity for finding in inspect_zip.inspect_submission(path)]
    assert severities == sorted(severities, key=["fatal", "warning", "ok"].index) and len(set(severities)) == 3


def test_names_from_outside_are_printed_as_plain_text(tmp_path):
    hostile = "\x1b[31m[red]\u202e" + "x" * 5000
    path = submission(
        tmp_path / "x.zip",
        edit=add_tensor(hostile, (1,)),
        config_only={"peft_type": hostile, hostile: 1, "target_modules": [hostile]},
    )
    for finding in inspect(path):
        assert finding.what.isascii()


@pytest.mark.slow
def test_a_config_built_to_take_long_is_checked(tmp_path):
    """A config of a megabyte with the longest possible lists: trying every entry on every module would take minutes."""
    names = [f"m{i}" for i in range(50_000)]
    wild = [f".*a.*b{i}" for i in range(10_000)]
    ranks = dict.fromkeys(wild, 4) | dict.fromkeys(names[:5000], 4)
    change = {"target_modules": names, "base_model_name_or_path": base_models.PUBLISHED}
    path = submission(tmp_path / "x.zip", config_only=change | {"rank_pattern": ranks})
    assert "target-unmatched" in codes(inspect(path), "fatal")


def test_unpacking_takes_the_files_that_the_scorer_takes(tmp_path):
    path = submission(
        tmp_path / "x.zip",
        members={CONFIG: None, TENSORS: None, "a/" + CONFIG: config(), "a/" + TENSORS: b"x", "b/" + TENSORS: b"y"},
    )
    (tmp_path / "out").mkdir()
    inspect_zip.unpack_adapter(path, tmp_path / "out")
    assert json.loads((tmp_path / "out" / CONFIG).read_text()) == config()
    assert (tmp_path / "out" / TENSORS).read_bytes() == b"x" and len(list((tmp_path / "out").iterdir())) == 2
    with pytest.raises(Refused, match="2 files are named adapter_config.json"):
        inspect_zip.unpack_adapter(submission(tmp_path / "y.zip", members={"a/" + CONFIG: config()}), tmp_path / "out")


@pytest.mark.slow
def test_random_damage_never_crashes_the_check_or_writes_files(tmp_path):
    """A process of its own checks random bytes and zips that were cut or changed: tests/helpers/fuzz_inspection.py."""
    call = [sys.executable, "-B", "-m", "tests.helpers.fuzz_inspection", "400", str(tmp_path)]
    process = subprocess.run(call, capture_output=True, text=True, cwd=Path(__file__).resolve().parents[2])
    assert process.returncode == 0, process.stdout + process.stderr
    base_name = json.loads(process.stdout.splitlines()[-1])
    assert base_name["cases"] == 400 and base_name["written"] == [] and base_name["mebibytes"] < 200
    assert base_name["findings"] > 25 and base_name["passed"] > 0  # some cases get past the first checks
    print(base_name)
