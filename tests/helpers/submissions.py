"""Submissions to try the check on: a sound adapter of the tiny policy, and changes to its config, tensors and files."""

import json
import zipfile

import numpy as np
from safetensors.numpy import save

from grpo_kit.adapters.names import Pattern
from grpo_kit.nemotron import base_models

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "in_proj", "out_proj", "up_proj", "down_proj"]
KEY = "base_model.model.backbone.layers."


def config(**change):
    """What PEFT writes for an adapter of all linear layers, with fields changed; a field that is `...` is left out."""
    fields = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "grpo-kit/tiny",
        "inference_mode": True,
        "r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": ALL, "bias": "none", "modules_to_save": None,
        "rank_pattern": {}, "alpha_pattern": {}, "use_dora": False, "use_rslora": False, "init_lora_weights": True,
        "auto_mapping": None, "target_parameters": None, "use_qalora": False, "qalora_group_size": 16,
        "megatron_core": "megatron.core", "loftq_config": {}, "layers_to_transform": None, "lora_bias": False,
    }  # fmt: skip
    return {name: value for name, value in (fields | change).items() if value is not ...}


def shapes_of(saved, base_modules, root="backbone."):
    """{key in adapter_model.safetensors: shape} of a complete adapter: A is (r, in), B is (out, r).

    Args:
        saved: an adapter_config.json with a list of `target_modules`.
        base_modules: {module: (out, in)}, as `base_models.lora_modules` returns it.
        root: `backbone.` as published or `model.` as transformers 5 saves; both load.
    """
    shapes, ranks = {}, Pattern(saved.get("rank_pattern"))
    for name in base_models.select_modules(saved["target_modules"], base_modules):
        (out, width), r = base_modules[name], ranks.value_of(name, saved["r"])
        key = f"base_model.model.{name.replace('backbone.', root, 1)}"
        shapes[f"{key}.lora_A.weight"], shapes[f"{key}.lora_B.weight"] = (r, width), (out, r)
    return shapes


def tensors(saved, base="tiny", root="backbone.", dtype="float32", seed=0):
    """{key: random values} of a complete adapter for a config."""
    rng = np.random.default_rng(seed)
    shapes = shapes_of(saved, base_models.lora_modules(base), root)
    return {key: (rng.random(shape, "f4") - 0.5).astype(dtype) for key, shape in shapes.items()}


def write_zip(path, members, compression=zipfile.ZIP_STORED):
    """A zip of `members`, {name or ZipInfo: bytes, text or JSON}, in order; pairs may repeat a name."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items() if isinstance(members, dict) else members:
            archive.writestr(name, content if isinstance(content, bytes | str) else json.dumps(content))
    return path


def submission(path, change=None, edit=None, members=None, config_only=None, compression=zipfile.ZIP_STORED, **options):
    """A zip of the tiny adapter.

    Args:
        change: config fields to change, together with the tensors that follow from them.
        edit: a function of the tensors that returns those to save.
        members: {name: content} of more files; None as content leaves a file out.
        config_only: config fields to change without changing the tensors.
        options: arguments of `tensors`.
    """
    saved = config(**(change or {}))
    values = tensors(saved, **options)
    contents = {CONFIG: config(**(change or {}) | (config_only or {})), TENSORS: save(edit(values) if edit else values)}
    contents |= members or {}
    return write_zip(path, {name: content for name, content in contents.items() if content is not None}, compression)
