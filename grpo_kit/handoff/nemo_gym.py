"""The run for NeMo-Gym's math server: its rows, the manifest, and the command of Nemotron's `steps` with what it lacks.

The shipped `nemo_gym` configuration asserts what it does not set (an async engine, a batch that is the whole of a step's
completions) and names servers that these rows do not need.
"""

import json
import shlex
from typing import Any

from grpo_kit.data.preparation import AGENT
from grpo_kit.handoff import nemo_overlay
from grpo_kit.handoff.bundle import Bundle, Part, gold, turns

MODEL_SERVER = "responses_api_models/vllm_model/configs/vllm_model_for_training.yaml"
MATH_SERVER = "resources_servers/math_with_judge/configs/math_with_judge.yaml"


def row_of(row: dict[str, Any]) -> dict[str, Any]:
    """A row for NeMo-Gym's math server: the conversation, the question, and the gold as text, with the agent to send it to."""
    return {
        "id": row["id"], "question": str(row["question"]), "expected_answer": gold(row),
        "responses_create_params": {"input": turns(row)}, "agent_ref": AGENT,
    }  # fmt: skip


def manifest(bundle: Bundle) -> dict[str, Any]:
    """The six keys of NVIDIA's data preparation, paths absolute; a split without rows is ""."""
    known = json.loads(bundle.run.manifest.read_text())
    paths = {s: str(bundle.out / s / "data.jsonl") if rows else "" for s, rows in bundle.rows.items()}
    return paths | {"mode": "resolve", "source_splits": known["source_splits"], "run_hash": known["run_hash"]}


def overrides(bundle: Bundle, part: Part) -> dict[str, Any]:
    """What `nemotron steps run rl/nemo_rl/rlvr -c nemo_gym` has to be told beside its shipped configuration."""
    whole = nemo_overlay.overlay(bundle, "v06", part)
    grpo = {key: value for key, value in whole["grpo"].items() if key != "adv_estimator"}
    told = {
        "data.manifest_path": str(bundle.out / "manifest.json"),
        **({} if bundle.rows["val"] else {"data.allow_train_as_validation": True}),
        "data.shuffle": not bundle.in_order,
        **_flat({"grpo": grpo | {"max_val_samples": None, "val_batch_size": None}, "loss_fn": whole["loss_fn"]}),
        **_flat({"policy": whole["policy"]}),
        "policy.generation.vllm_cfg.async_engine": True,
        "policy.generation.vllm_cfg.expose_http_server": True,
        "env.should_use_nemo_gym": True,
        "env.nemo_gym.config_paths": [MODEL_SERVER, MATH_SERVER],
        **_flat({"checkpointing": {**whole["checkpointing"], "metric_name": "val:total_reward/mean"}}),
        **_flat({"logger": whole["logger"], "cluster": whole["cluster"]}),
    }
    if not bundle.rows["val"] or not bundle.config.grpo.eval_steps:
        told["checkpointing.metric_name"] = None
    return told


def script(bundle: Bundle, part: Part) -> str:
    told = [shlex.quote(f"{key}={_dotlist(value)}") for key, value in overrides(bundle, part).items()]
    line = " \\\n  ".join(["nemotron steps run rl/nemo_rl/rlvr -c nemo_gym", *told])
    return f"#!/bin/sh\n# NeMo-Gym's math server through Nemotron's steps (image v0.6.0); more words are passed on.\n{line} \"$@\"\n"


def _dotlist(value: Any) -> str:
    """A value on a command line, as OmegaConf and Hydra both read it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_dotlist(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(f"'{item}'" if isinstance(item, str) else _dotlist(item) for item in value) + "]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _flat(tree: dict[str, Any], above: str = "") -> dict[str, Any]:
    """{"a.b": value} of a nested mapping."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{above}.{key}" if above else key
        found |= _flat(value, name) if isinstance(value, dict) else {name: value}
    return found
