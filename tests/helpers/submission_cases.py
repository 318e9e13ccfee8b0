"""Kinds of submissions: sound ones, odd ones and broken ones, each with the finding that it must get.

The tests of the check use them, and `benchmarks/scorer_engine.py` hands them to the scorer's engine.
"""

import itertools
import json
import zipfile

import numpy as np
from safetensors.numpy import save

from grpo_kit.nemotron import base_models
from tests.helpers.submissions import ALL, CONFIG, KEY, TENSORS, config, tensors


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


def tinker_experts(values):
    """The routed experts as Tinker saves them: w1 and w2, with an axis for experts."""
    result = remove(".experts.")(values)
    for layer, (name, leaf), half in itertools.product((1, 3), (("w1", "up_proj"), ("w2", "down_proj")), "AB"):
        stem = f"{KEY}{layer}.mixer.experts."
        stack = np.stack([values[f"{stem}{number}.{leaf}.lora_{half}.weight"] for number in range(8)])
        result[f"{stem}{name}.lora_{half}.weight"] = stack
    return result


def stack_last(values):
    return {k: v[None].transpose(1, 2, 0) if ".experts." in k and "lora_B" in k else v for k, v in values.items()}


def add_pair(module, out, inside, halves=("lora_A.weight", "lora_B.weight")):
    """A function of tensors that adds a pair of rank 4 on a module."""
    a, b = (f"{module}.{half}" for half in halves)
    return lambda values: add_tensor(b, (out, 4))(add_tensor(a, (4, inside))(values))


def cast(dtype):
    return lambda values: {key: value.astype(dtype) for key, value in values.items()}


to_zero, B = (lambda value: value * 0), "lora_B"
EMBEDDED = ("lora_embedding_A", "lora_embedding_B")
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
    "alpha 0": ({"change": {"lora_alpha": 0}}, "alpha"),
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
    "DoRA": ({"change": {"use_dora": True}}, "dora"),
    "bias": ({"change": {"bias": "all"}}, "bias"),
    "bias of LoRA": ({"change": {"bias": "lora_only"}}, "bias"),
    "modules to save": ({"change": {"modules_to_save": ["lm_head"]}}, "modules-to-save"),
    "layers repeated": ({"change": {"layer_replication": [[0, 2]]}}, "layer-replication"),
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
    "magnitudes": ({"edit": add_tensor(KEY + "2.mixer.q_proj.lora_magnitude_vector.weight", (128,))}, "keys-dora"),
    "biases": ({"edit": add_tensor(KEY + "2.mixer.q_proj.lora_B.bias", (128,))}, "keys-bias"),
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
    "a head under the backbone": (
        {
            "change": {"target_modules": [*ALL, "lm_head"]},
            "edit": rename_keys("model.lm_head", "model.backbone.lm_head"),
        },
        "lm-head-name",
    ),
    "rank 0 tensors": ({"edit": change_tensors(containing("q_proj.lora_A"), lambda v: v[:0])}, "zero-size"),
    "an empty w3": ({"edit": add_tensor(KEY + "1.mixer.experts.w3.lora_A.weight", (0, 128))}, "keys-fused"),
    "shared experts alone": ({"change": {"target_modules": SHARED}}, "nothing-used"),
    "rsLoRA on routed experts": ({"change": {"use_rslora": True}}, "rslora-experts"),
    "a pair on gate_proj": ({"edit": add_pair(KEY + "1.mixer.shared_experts.gate_proj", 64, 128)}, "module-unknown"),
    "a pair on the router": ({"edit": add_pair(KEY + "1.mixer.gate", 8, 128)}, "module-unknown"),
    "a pair on a convolution": ({"edit": add_pair(KEY + "0.mixer.conv1d", 256, 4)}, "module-unknown"),
    "a pair on Mamba's x_proj": ({"edit": add_pair(KEY + "0.mixer.x_proj", 192, 128)}, "module-unknown"),
    "a pair on a layer too many": ({"edit": add_pair(KEY + "4.mixer.q_proj", 128, 128)}, "module-unknown"),
    "a pair on q_proj of a Mamba layer": ({"edit": add_pair(KEY + "0.mixer.q_proj", 128, 128)}, "module-unknown"),
    "a pair on an expert too many": ({"edit": add_pair(KEY + "1.mixer.experts.8.up_proj", 64, 128)}, "module-unknown"),
    "a pair on experts of another name": (
        {"edit": add_pair(KEY + "1.mlp.experts.0.up_proj", 64, 128)},
        "module-unknown",
    ),
    "a pair on stacked experts": ({"edit": add_pair(KEY + "1.mixer.experts", 128, 64)}, "keys-stacked"),
    "a pair on PEFT's base_layer": ({"edit": add_pair(KEY + "1.mixer.experts.base_layer", 64, 128)}, "keys-stacked"),
    "experts' whole base_layer": (
        {"edit": add_tensor(KEY + "1.mixer.experts.base_layer.weight", (4, 4))},
        "keys-whole",
    ),
    "the embeddings' weight by its published name": (
        {"edit": add_tensor("base_model.model.backbone.embeddings.base_layer.weight", (272, 128))},
        "keys-whole",
    ),
    "the head's weight without a prefix": ({"edit": add_tensor("lm_head.base_layer.weight", (272, 128))}, "keys-whole"),
    "embeddings of another vocabulary": (
        {"edit": add_pair("base_model.model.backbone.embeddings", 128, 100, EMBEDDED)},
        "shape",
    ),
    "embeddings without a layer above": (
        {"edit": add_pair("base_model.model.embeddings", 128, 272, EMBEDDED)},
        "module-unknown",
    ),
    "a narrower module": (
        {"edit": lambda v: add_pair(KEY + "2.mixer.k_proj", 32, 64)(remove("k_proj")(v))},
        "shape",
    ),
    "q_proj without A": ({"edit": remove("q_proj.lora_A")}, "pair-broken"),
    "q_proj without B": ({"edit": remove("q_proj.lora_B")}, "pair-broken"),
    "o_proj without A": ({"edit": remove("o_proj.lora_A")}, "pair-broken"),
    "in_proj without A": ({"edit": remove("in_proj.lora_A")}, "pair-broken"),
    "in_proj without B": ({"edit": remove("in_proj.lora_B")}, "pair-broken"),
    "an expert without A": ({"edit": remove("experts.3.up_proj.lora_A")}, "pair-broken"),
    "an expert without B": ({"edit": remove("experts.3.up_proj.lora_B")}, "pair-broken"),
    "bias null": ({"change": {"bias": None}}, "bias-null"),
    "rank 33.5": ({"config_only": {"r": 33.5}}, "rank"),
    "alpha as a boolean": ({"change": {"lora_alpha": True}}, "alpha"),
    "alpha null": ({"change": {"lora_alpha": None}}, "alpha"),
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
    "no prefix": ({"edit": rename_keys("base_model.model.", "")}, "keys-prefix"),
    "heads for several tokens": (
        {"edit": add_tensor("base_model.model.mtp.layers.0.mixer.q_proj.lora_A.weight", (4, 128))},
        "keys-mtp",
    ),
    "the embeddings' weight": (
        {"edit": add_tensor("base_model.model.backbone.embed_tokens.base_layer.weight", (272, 128))},
        "base-weight",
    ),
    "LoRA on embeddings": (
        {"edit": add_pair("base_model.model.backbone.embeddings", 128, 272, EMBEDDED)},
        "embeddings",
    ),
    "LoRA on embeddings by transformers' name": (
        {"edit": add_pair("base_model.model.model.embed_tokens", 128, 272)},
        "embeddings",
    ),
    "a weight of heads for several tokens": (
        {"edit": add_tensor("base_model.model.mtp.fc.weight", (4, 4))},
        "keys-mtp",
    ),
    "heads for several tokens under the backbone": (
        {"edit": add_pair("base_model.model.backbone.mtp.layers.0.mixer.q_proj", 128, 128)},
        "keys-mtp",
    ),
    "IA3": ({"change": {"peft_type": "IA3"}}, "peft-type"),
    "a pattern of text": ({"config_only": {"rank_pattern": {"q_proj": "8"}}}, "rank-pattern-invalid"),
    "a pattern that is a list": ({"config_only": {"rank_pattern": ["q_proj"]}}, "rank-pattern-invalid"),
    "null targets": ({"config_only": {"target_modules": None}}, "targets"),
    "an empty list of targets": ({"config_only": {"target_modules": []}}, "targets"),
    "targets that are numbers": ({"config_only": {"target_modules": [1]}}, "targets"),
    "LoRA's own bias": ({"change": {"lora_bias": True}}, "bias"),
    "new tokens": ({"change": {"trainable_token_indices": [1]}}, "tokens"),
    "LoHa": ({"change": {"peft_type": "LOHA"}}, "peft-type"),
    "prompt tuning": ({"change": {"peft_type": "PROMPT_TUNING"}}, "peft-type"),
    "alpha -8": ({"change": {"lora_alpha": -8}}, "alpha-odd"),
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
    "a pattern that changes nothing": {"change": {"rank_pattern": {".*q_proj": 4}}},
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

PACKED = {  # (the source adapter, as arguments of `submission`; arguments of `pack_folders`)
    "packed": ({}, {}),
    "packed without a prefix": ({"edit": rename_keys("base_model.model.", "")}, {}),
    "packed with a head under the backbone": (
        {
            "change": {"target_modules": [*ALL, "lm_head"]},
            "edit": rename_keys("model.lm_head", "model.backbone.lm_head"),
        },
        {},
    ),
    "packed with rsLoRA on routed experts": ({"change": {"use_rslora": True}}, {}),
    "packed in several ranks": ({"change": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"k_proj": 2}}}, {}),
    "packed with a pattern of ranks": ({"change": {"rank_pattern": {"q_proj": 2}}}, {"ranks": "pattern"}),
    "packed from rank 64": ({"change": {"r": 64}}, {}),
    "packed from a few experts": ({"change": {"target_modules": ["experts.0.up_proj", "experts.0.down_proj"]}}, {}),
    "packed from Tinker's names": ({"edit": tinker_experts}, {}),
    "packed in bfloat16": ({}, {"dtype": "bfloat16"}),
    "packed with only what is used": ({}, {"only_used": True}),
    "packed with a negative alpha": ({"change": {"lora_alpha": -8}}, {}),
}
