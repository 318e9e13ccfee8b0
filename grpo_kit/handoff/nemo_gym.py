"""The run for NeMo-Gym's math server: rows, manifest, and the command of Nemotron's `steps` with the settings it needs.

The `nemo_gym` configuration that NVIDIA ships asserts settings that it does not set itself (an async engine, a batch of
all completions of a step) and names servers that these rows do not need. The command sets them. It was never run here.
"""

import shlex
from typing import Any

from grpo_kit.data.splits import AGENT
from grpo_kit.handoff import nemo_overlay
from grpo_kit.handoff.bundle import Bundle, Part, chat_turns, reference_answer
from grpo_kit.runs.reading import read_json

MODEL_SERVER = "responses_api_models/vllm_model/configs/vllm_model_for_training.yaml"
MATH_SERVER = "resources_servers/math_with_judge/configs/math_with_judge.yaml"


def make_gym_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row for NeMo-Gym's math server: conversation, question, reference answer as text, and its agent."""
    return {
        "id": row["id"],
        "question": str(row["question"]),
        "expected_answer": reference_answer(row),
        "responses_create_params": {"input": chat_turns(row)},
        "agent_ref": AGENT,
    }


def make_manifest(bundle: Bundle) -> dict[str, Any]:
    """The six keys of NVIDIA's data preparation with absolute paths; a split without rows is empty text."""
    own = read_json(bundle.run.manifest)
    paths = {split: str(bundle.out / split / "data.jsonl") if rows else "" for split, rows in bundle.rows.items()}
    return paths | {"mode": "resolve", "source_splits": own["source_splits"], "run_hash": own["run_hash"]}


def make_overrides(bundle: Bundle, part: Part) -> dict[str, Any]:
    """The settings that `nemotron steps run rl/nemo_rl/rlvr -c nemo_gym` needs besides its shipped configuration."""
    overlay = nemo_overlay.make_overlay(bundle, "v06", part)
    grpo = {key: value for key, value in overlay["grpo"].items() if key != "adv_estimator"}
    settings = {
        "data.manifest_path": str(bundle.out / "manifest.json"),
        **({} if bundle.rows["val"] else {"data.allow_train_as_validation": True}),
        "data.shuffle": not bundle.keeps_order,
        **_flat({"grpo": grpo | {"max_val_samples": None, "val_batch_size": None}, "loss_fn": overlay["loss_fn"]}),
        **_flat({"policy": overlay["policy"]}),
        "policy.generation.vllm_cfg.async_engine": True,
        "policy.generation.vllm_cfg.expose_http_server": True,
        "env.should_use_nemo_gym": True,
        "env.nemo_gym.config_paths": [MODEL_SERVER, MATH_SERVER],
        **_flat({"checkpointing": {**overlay["checkpointing"], "metric_name": "val:total_reward/mean"}}),
        **_flat({"logger": overlay["logger"], "cluster": overlay["cluster"]}),
    }
    if not bundle.rows["val"] or not bundle.config.grpo.eval_steps:
        settings["checkpointing.metric_name"] = None
    return settings


def make_script(bundle: Bundle, part: Part) -> str:
    """The shell script that trains `part` through NeMo-Gym."""
    settings = [shlex.quote(f"{key}={_dotlist(value)}") for key, value in make_overrides(bundle, part).items()]
    line = " \\\n  ".join(["nemotron steps run rl/nemo_rl/rlvr -c nemo_gym", *settings])
    comment = "# NeMo-Gym's math server through Nemotron's steps (image v0.6.0); further arguments are passed on."
    return f'#!/bin/sh\n{comment}\n{line} "$@"\n'


def _dotlist(value: Any) -> str:
    """A value in the form in which both OmegaConf and Hydra read it on a command line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_dotlist(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(f"'{item}'" if isinstance(item, str) else _dotlist(item) for item in value) + "]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _flat(tree: dict[str, Any], above: str = "") -> dict[str, Any]:
    """{"a.b": value} of a nested mapping."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{above}.{key}" if above else key
        flat |= _flat(value, name) if isinstance(value, dict) else {name: value}
    return flat
