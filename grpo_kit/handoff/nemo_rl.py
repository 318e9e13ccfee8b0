"""The run for NVIDIA NeMo-RL: rows, prompt file and an overlay for either schema, and the rows and command of NeMo-Gym.

Formats, defaults and traps as read in NeMo-RL v0.6.0, v0.7.0 and main of August 2026 (one schema), in the documentation of
v0.8.0 (`automodel_cfg`, `restore_from`), and in Nemotron's `steps`, which are pinned to v0.6.0. An overlay holds what
differs from NeMo-RL's `grpo_math_1B.yaml`, which it names as its `defaults`.
"""

import json
import math
import shlex
from typing import Any

from omegaconf import OmegaConf

from grpo_kit import workspace
from grpo_kit.data import AGENT
from grpo_kit.handoff.bundle import Bundle, Part, gold, turns

HOME = "/opt/nemo-rl"  # where NVIDIA's image has it
BLOCK = {"v06": "dtensor_cfg", "v08": "automodel_cfg"}  # what v0.8 renamed
MODEL_SERVER = "responses_api_models/vllm_model/configs/vllm_model_for_training.yaml"
MATH_SERVER = "resources_servers/math_with_judge/configs/math_with_judge.yaml"
FOREVER = 10_000_000_000  # steps
MERGE_STAGE = '''"""What a stage has trained, merged into what it began with: python merge_stage.py BASE ADAPTER OUT"""

import sys

from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base, adapter, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype="bfloat16")
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
AutoTokenizer.from_pretrained(base).save_pretrained(out)
'''


def write(bundle: Bundle) -> tuple[str, list[str]]:
    """Fill the bundle's folder; returns (how to start it, Markdown; what does not carry over, sentences)."""
    with_budget = any(row.get("token_budget") for row in bundle.rows["train"])
    prompt = prompt_file(bundle, "" if with_budget else bundle.config.data.prompt_suffix)
    workspace.write_text(bundle.aside / "nemo_rl" / "prompt.txt", prompt)
    for split in ("train", "val"):
        if bundle.rows[split]:
            rows = [math_row(row, with_budget) for row in bundle.rows[split]]
            workspace.write_lines(bundle.aside / "nemo_rl" / f"{split}.jsonl", rows)
    for split, rows in bundle.rows.items():
        if rows:
            workspace.write_lines(bundle.aside / split / "data.jsonl", map(gym_row, rows))
    workspace.write_text(bundle.aside / "manifest.json", json_text(manifest(bundle)))
    commands = []
    for part in bundle.parts():
        for version in BLOCK:
            path = f"nemo_rl/{_file(part, version)}"
            workspace.write_text(bundle.aside / path, _head(bundle, version) + OmegaConf.to_yaml(overlay(bundle, version, part)))
        name = f"nemo_rl/gym{part.name and '_' + part.name}.sh"
        workspace.write_text(bundle.aside / name, _gym_script(bundle, part))
        commands += _commands(bundle, part, name)
    if len(bundle.parts()) > 1:
        workspace.write_text(bundle.aside / "nemo_rl" / "merge_stage.py", MERGE_STAGE)
    return "\n".join(commands), _not_carried(bundle)


def prompt_file(bundle: Bundle, suffix: str) -> str:
    r"""The text NeMo-RL formats each problem into, by `str.format`: braces doubled, a backslash as it is.

    Its math processor makes one user turn and no system turn; a system text opens that turn.
    """
    system = bundle.config.data.system_prompt
    before, after = (text.replace("{", "{{").replace("}", "}}") for text in (system and f"{system}\n\n", suffix))
    return f"{before}{{}}{after}"


def math_row(row: dict[str, Any], whole: bool = False) -> dict[str, str]:
    """A row for `ResponseDataset`: the problem (with `whole` the user's turn as it was) and its gold, both text."""
    return {"input": turns(row)[-1]["content"] if whole else str(row["question"]), "output": gold(row)}


def gym_row(row: dict[str, Any]) -> dict[str, Any]:
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


def overlay(bundle: Bundle, version: str, part: Part) -> dict[str, Any]:
    """What differs from NeMo-RL's defaults, for `v06` (to v0.7 and main of August 2026) or `v08`."""
    config, grpo, out = bundle.config, bundle.config.grpo, bundle.out
    rows, data = len(bundle.rows["val"]), f"{out}/nemo_rl"
    normalising = {
        "normalize_rewards": grpo.normalize_rewards,
        "use_leave_one_out_baseline": grpo.advantage == "leave_one_out",
    }
    micro = micro_batch(bundle)
    lora = lora_block(bundle)
    if version == "v08":
        lora["restore_from"] = str(out / "adapter") if part == bundle.parts()[0] else f"{_before(bundle, part)}/model"
    return {
        "defaults": f"{HOME}/examples/configs/grpo_math_1B.yaml",
        "grpo": {
            "num_prompts_per_step": bundle.prompts, "num_generations_per_prompt": grpo.num_generations,
            "max_num_steps": part.steps, "max_num_epochs": bundle.epochs(part.steps), **normalising,
            "adv_estimator": {"name": "grpo", **normalising},
            "val_period": grpo.eval_steps if rows else 0, "max_val_samples": rows, "val_batch_size": max(1, rows),
            "overlong_filtering": grpo.mask_truncated_completions, "use_dynamic_sampling": False, "seed": config.run.seed,
        },
        "loss_fn": loss(bundle, part),
        "checkpointing": {
            "checkpoint_dir": _results(bundle, part), "save_period": grpo.save_steps,
            "metric_name": "val:accuracy" if rows and grpo.eval_steps else None,
            **({"save_consolidated": True} if version == "v06" else {}),
        },
        "policy": {
            "model_name": bundle.base if version == "v08" else _merged(bundle, part),
            "tokenizer": {"chat_template_kwargs": {"enable_thinking": config.policy.enable_thinking}},
            "train_global_batch_size": bundle.batch, "train_micro_batch_size": micro, "logprob_batch_size": micro,
            **_lengths(bundle, part),
            "precision": "float32" if config.policy.dtype == "float32" else "bfloat16",
            BLOCK[version]: {"activation_checkpointing": grpo.gradient_checkpointing, "lora_cfg": lora},
            "max_grad_norm": grpo.max_grad_norm,
            "optimizer": {"kwargs": {"lr": part.learning_rate, "weight_decay": 0.0}},
            "scheduler": scheduler(bundle, part.steps),
        },
        "data": {
            "_override_": True, "max_input_seq_length": "${policy.max_total_sequence_length}",
            "shuffle": not bundle.in_order, "num_workers": 1, "use_multiple_dataloader": False,
            "train": {"dataset_name": "ResponseDataset", "data_path": f"{data}/train.jsonl"},
            "validation": {"dataset_name": "ResponseDataset", "data_path": f"{data}/val.jsonl"} if rows else None,
            "default": {
                "input_key": "input", "output_key": "output", "prompt_file": f"{data}/prompt.txt",
                "system_prompt_file": None, "processor": "math_hf_data_processor", "env_name": "math",
            },
        },
        "env": {"math": {"num_workers": 8, "math_verify_impl": "hf_math_verify"}},
        "logger": {
            "log_dir": f"{_results(bundle, part)}/logs",
            **{f"{name}_enabled": name in config.run.report_to for name in ("tensorboard", "wandb")},
        },
        "cluster": {"gpus_per_node": gpus(bundle), "num_nodes": 1},
    }  # fmt: skip


def loss(bundle: Bundle, part: Part) -> dict[str, Any]:
    """NeMo-RL's `loss_fn` for `grpo.loss_type`. With one update a batch TRL's ratio is 1, as `force_on_policy_ratio` has it."""
    grpo = bundle.config.grpo
    cispo = grpo.loss_type == "cispo"  # TRL caps the ratio at epsilon_high itself and has no lower end
    return {
        "reference_policy_kl_penalty": part.beta,
        "ratio_clip_min": 1.0 if cispo else grpo.epsilon,
        "ratio_clip_max": part.epsilon_high - 1 if cispo else part.epsilon_high,
        "token_level_loss": grpo.loss_type in ("dapo", "bnpo", "cispo"),
        "sequence_level_importance_ratios": grpo.loss_type == "gspo",
        "use_cispo": cispo,
        "force_on_policy_ratio": grpo.num_iterations == 1 and not cispo,
    }


def lora_block(bundle: Bundle) -> dict[str, Any]:
    """A LoRA like the run's. `match_all_linear` off: it would adapt lm_head too, and excludes `target_modules`."""
    lora = bundle.config.lora
    return {
        "enabled": True, "target_modules": [f"*.{name}" for name in lora.target_modules], "exclude_modules": [],
        "match_all_linear": False, "dim": lora.r, "alpha": lora.lora_alpha, "dropout": lora.lora_dropout,
        "dropout_position": "post", "lora_A_init": "xavier", "use_triton": True,
    }  # fmt: skip


def scheduler(bundle: Bundle, steps: int) -> list[dict[str, Any]]:
    """torch's schedulers for `grpo.lr_scheduler_type`; one that is not known here stays constant (and is said so)."""
    kind, warm, torch = bundle.config.grpo.lr_scheduler_type, bundle.config.grpo.warmup_steps, "torch.optim.lr_scheduler."
    warm = 0 if kind == "constant" else warm  # as transformers has it
    first = {"start_factor": 1 / (warm + 1), "end_factor": 1.0, "total_iters": max(1, warm)}
    if not warm:
        first["start_factor"] = 1.0
    rest = {
        "linear": ("LinearLR", {"start_factor": 1.0, "end_factor": 0.0, "total_iters": max(1, steps - warm)}),
        "cosine": ("CosineAnnealingLR", {"T_max": max(1, steps - warm)}),
    }.get(kind, ("ConstantLR", {"factor": 1.0, "total_iters": FOREVER}))
    return [
        {"name": f"{torch}LinearLR", "kwargs": first},
        {"name": torch + rest[0], "kwargs": rest[1]},
        {"milestones": [max(1, warm)]},
    ]


def gpus(bundle: Bundle) -> int:
    """GPUs of a node, at most 8, among which a step's completions can be shared out evenly."""
    return max(count for count in range(1, 9) if bundle.batch % count == 0)


def micro_batch(bundle: Bundle) -> int:
    """Completions passed through the model at once: as many as the run's, as far as each GPU's share is a multiple of them."""
    return math.gcd(bundle.config.grpo.per_device_train_batch_size, bundle.batch // gpus(bundle))


def gym_overrides(bundle: Bundle, part: Part) -> dict[str, Any]:
    """What `nemotron steps run rl/nemo_rl/rlvr -c nemo_gym` has to be told beside its shipped configuration."""
    whole = overlay(bundle, "v06", part)
    grpo = {key: value for key, value in whole["grpo"].items() if key != "adv_estimator"}
    told = {
        "data.manifest_path": str(bundle.out / "manifest.json"),
        **({} if bundle.rows["val"] else {"data.allow_train_as_validation": True}),
        "data.shuffle": not bundle.in_order,
        **_flat({"grpo": grpo | {"max_val_samples": None, "val_batch_size": None}, "loss_fn": whole["loss_fn"]}),
        **_flat({"policy": {key: value for key, value in whole["policy"].items() if key != "scheduler"}}),
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


def json_text(whole: Any) -> str:
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def _lengths(bundle: Bundle, part: Part) -> dict[str, Any]:
    """Tokens of prompt and completion. A stage's length is DeepScaleR's: of both together."""
    grpo = bundle.config.grpo
    total = part.length if part.name else -(-(bundle.prompt_tokens + part.length) // 64) * 64
    return {
        "max_total_sequence_length": total,
        "generation": {
            "max_new_tokens": part.length, "temperature": grpo.temperature, "top_p": grpo.top_p, "top_k": grpo.top_k or None,
            "vllm_cfg": {"gpu_memory_utilization": 0.5},
        },
    }  # fmt: skip


def _results(bundle: Bundle, part: Part) -> str:
    return f"{bundle.out}/results{part.name and '/' + part.name}"


def _before(bundle: Bundle, part: Part) -> str:
    """Where the stage before `part` leaves its weights."""
    parts = bundle.parts()
    before = parts[parts.index(part) - 1]
    return f"{_results(bundle, before)}/step_{before.steps}/policy/weights"


def _merged(bundle: Bundle, part: Part) -> str:
    """The model that up to v0.7 goes on: the run's own merged one, or what came of the stage before."""
    return str(bundle.out / "model") if part == bundle.parts()[0] else f"{_before(bundle, part)}/hf"


def _file(part: Part, version: str) -> str:
    return f"grpo_{version}{part.name and '_' + part.name}.yaml"


def _head(bundle: Bundle, version: str) -> str:
    if version == "v08":
        return "# For NeMo-RL v0.8: goes on from the adapter on the base. The KL reference is the adapter as it begins.\n"
    lacks = "" if bundle.merge else "\n# model/ is NOT here: write the bundle again with --merge. The base alone would forget what was trained."
    return f"# For NeMo-RL v0.6, v0.7 and main of August 2026: a fresh LoRA on the merged model.{lacks}\n"


def _gym_script(bundle: Bundle, part: Part) -> str:
    told = [shlex.quote(f"{key}={_dotlist(value)}") for key, value in gym_overrides(bundle, part).items()]
    line = " \\\n  ".join(["nemotron steps run rl/nemo_rl/rlvr -c nemo_gym", *told])
    return f"#!/bin/sh\n# NeMo-Gym's math server through Nemotron's steps (image v0.6.0); more words are passed on.\n{line} \"$@\"\n"


def _dotlist(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ",".join(f"'{item}'" for item in value) + "]"
    return {None: "null", True: "true", False: "false"}.get(value, str(value)) if not isinstance(value, float) else repr(value)


def _flat(tree: dict[str, Any], above: str = "") -> dict[str, Any]:
    """{"a.b": value} of a nested mapping."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{above}.{key}" if above else key
        found |= _flat(value, name) if isinstance(value, dict) else {name: value}
    return found


def _commands(bundle: Bundle, part: Part, gym: str) -> list[str]:
    """Markdown: how this part is started, and what makes a model of the stage before for it."""
    lines, parts = [f"### {part.name or 'The run'}: {part.steps} steps", ""], bundle.parts()
    if part != parts[0]:
        began, weights = _merged(bundle, parts[parts.index(part) - 1]), _before(bundle, part)
        lines += [
            "v0.8 goes on from the adapter that the stage before has saved (`restore_from`). Up to v0.7 it is merged first,",
            "by this line or by `nemotron steps run convert/merge_lora`:",
            "",
            f"    python {bundle.out}/nemo_rl/merge_stage.py {began} {weights}/model {weights}/hf",
            "",
        ]
    run = f"cd {HOME} && uv run examples/run_grpo.py --config {bundle.out}/nemo_rl"
    return lines + [
        f"    {run}/{_file(part, 'v06')}   # v0.6, v0.7; needs model/ (--merge)",
        f"    {run}/{_file(part, 'v08')}   # v0.8",
        f"    sh {bundle.out}/{gym}   # through NeMo-Gym; needs model/ (--merge)",
        "",
    ]


def _not_carried(bundle: Bundle) -> list[str]:
    config = bundle.config
    found = [
        "Rewards are NeMo-RL's own: math-verify on the last box against the gold, by `env.math`, and Gym's math server; ours stay here.",
        "Optimiser state, the step counter and the book of pass rates stay here; the engine counts from 0.",
        f"The cluster is written as {gpus(bundle)} GPUs of one node, the most up to 8 that share {bundle.batch} completions evenly; "
        "memory and parallelism were not computed. With tensor parallelism set lora_cfg.use_triton=false.",
        "LoRA needs NeMo-RL's DTensor path; it has no 4-bit base, and routed experts may not take one there.",
    ]
    if not bundle.merge:
        found.append("Up to v0.7 NeMo-RL cannot go on from an adapter: `grpo_v06*.yaml` and `gym*.sh` need `model/`, which --merge writes.")
    if config.data.system_prompt:
        found.append("NeMo-RL's math processor has no system turn: in `nemo_rl/` the system text opens the user's; Gym's rows keep it.")
    if config.grpo.stages:
        found.append(
            "Stages begin when their steps are over, whatever their `enter`; a stage's length is prompt and completion together. "
            "NVIDIA's DeepScaleR recipe takes 16 updates from each batch of 1,024 completions, where this run takes one and the "
            "clip never binds: for theirs append `policy.train_global_batch_size=64 loss_fn.force_on_policy_ratio=false`. It "
            "also sets tensor parallelism 2 from 16K on and validates on AIME 2024, 16 times each."
        )
    if config.grpo.num_iterations > 1:
        found.append(f"grpo.num_iterations {config.grpo.num_iterations}: a batch is trained on once there.")
    return found
