"""The run for verl: train and validation Parquet, the verifier as `compute_score`, and `run.sh`.

Keys as in verl of January 2026 (b178a3c), FSDP. verl takes one score of one completion; the verifier's is handed over.
"""

import shlex
from typing import Any

from grpo_kit.handoff.bundle import Bundle, turns
from grpo_kit.runs.files import write_text

FOOTER = '''

def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    """verl's entry: what {name} pays one completion; 0.0 where the gold cannot be used."""
    row = extra_info or {{}}
    columns = {{key: [row[key]] for key in ("prompt_opened_think", "enable_thinking") if row.get(key) is not None}}
    (paid,) = {name}(completions=[solution_str], answer=[ground_truth], **columns)
    return 0.0 if paid is None else float(paid)
'''
AGGREGATES = {"dapo": "token-mean", "bnpo": "token-mean", "cispo": "token-mean", "dr_grpo": "seq-mean-token-sum-norm"}


def write(bundle: Bundle) -> tuple[str, list[str]]:
    """Fill the bundle's folder; returns (how to start it, Markdown; what does not carry over, sentences)."""
    import pyarrow
    from pyarrow import parquet

    for split in ("train", "val"):
        if found := rows(bundle, split):
            parquet.write_table(pyarrow.Table.from_pylist(found), bundle.aside / f"{split}.parquet")
    path, name = bundle.verifier
    write_text(bundle.aside / "reward.py", reward_file(path.read_text(encoding="utf-8"), name))
    told = " \\\n  ".join(f"{key}={_hydra(value)}" for key, value in settings(bundle).items())
    line = f'cd "$(dirname "$0")"\npython3 -m verl.trainer.main_ppo \\\n  {told} "$@"\n'
    write_text(
        bundle.aside / "run.sh", f"#!/bin/sh\n# GRPO goes on from adapter/; more words are passed on.\nset -e\n{line}"
    )
    start = f"    pip install math-verify   # beside verl; the referee asks it about algebra\n    sh {shlex.quote(str(bundle.out))}/run.sh\n"
    return start, _not_carried(bundle)


def rows(bundle: Bundle, split: str) -> list[dict[str, Any]]:
    """verl's rows of a split: `data_source`, `prompt`, `ability`, `reward_model` (the gold, text) and `extra_info`."""
    opened = bundle.opened_think(split)
    return [
        {
            "data_source": str(row["source"]),
            "prompt": turns(row),
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": str(row["answer"])},
            "extra_info": {
                "split": split, "index": index, "id": row["id"], "prompt_opened_think": opens,
                "enable_thinking": row.get("enable_thinking"),
            },
        }
        for index, (row, opens) in enumerate(zip(bundle.rows[split], opened, strict=True))
    ]  # fmt: skip


def reward_file(source: str, name: str) -> str:
    """`reward.py`: a reward's whole file, as text, with `compute_score` behind it."""
    return source.rstrip("\n") + "\n" + FOOTER.format(name=name)


def settings(bundle: Bundle) -> dict[str, Any]:
    """verl's keys, `+` before those that its configuration leaves open."""
    config, grpo, evaluation = bundle.config, bundle.config.grpo, bundle.config.evaluation
    part = bundle.parts()[0]
    actor, model, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.model", "actor_rollout_ref.rollout"
    length = max(stage.length for stage in bundle.parts())
    micro = bundle.micro_batch
    return {
        "algorithm.adv_estimator": "rloo" if grpo.advantage == "leave_one_out" else "grpo",
        "algorithm.norm_adv_by_std_in_grpo": grpo.normalize_rewards,
        "algorithm.use_kl_in_reward": False,
        "data.train_files": f"{bundle.out}/train.parquet",
        "data.val_files": f"{bundle.out}/{'val' if bundle.rows['val'] else 'train'}.parquet",
        "data.train_batch_size": bundle.prompts,
        "data.max_prompt_length": bundle.prompt_tokens,
        "data.max_response_length": length,
        "data.shuffle": not bundle.in_order,
        "++data.seed": config.run.seed,
        "+data.apply_chat_template_kwargs.enable_thinking": config.policy.enable_thinking,
        f"{model}.path": bundle.base,
        f"{model}.lora_adapter_path": f"{bundle.out}/adapter",
        f"{model}.lora_rank": config.lora.r,
        f"{model}.lora_alpha": config.lora.lora_alpha,
        f"{model}.target_modules": config.lora.target_modules,
        f"{model}.enable_gradient_checkpointing": grpo.gradient_checkpointing,
        f"{actor}.optim.lr": part.learning_rate,
        f"{actor}.optim.lr_warmup_steps": 0 if grpo.lr_scheduler_type == "constant" else grpo.warmup_steps,
        f"{actor}.optim.weight_decay": 0.0,
        f"{actor}.ppo_mini_batch_size": bundle.prompts,
        f"{actor}.ppo_micro_batch_size_per_gpu": micro,
        f"{actor}.ppo_epochs": grpo.num_iterations,
        f"{actor}.clip_ratio_low": 1.0 if grpo.loss_type == "cispo" else grpo.epsilon,  # TRL's weight has no lower end
        f"{actor}.clip_ratio_high": part.epsilon_high,
        f"{actor}.clip_ratio_c": 1e6,  # TRL clips once
        f"{actor}.loss_agg_mode": AGGREGATES.get(grpo.loss_type, "seq-mean-token-mean"),
        f"{actor}.policy_loss.loss_mode": grpo.loss_type if grpo.loss_type in ("gspo", "cispo") else "vanilla",
        f"{actor}.use_kl_loss": part.beta > 0,
        f"{actor}.kl_loss_coef": part.beta,
        f"{actor}.kl_loss_type": "low_var_kl",
        f"{actor}.entropy_coeff": 0,
        f"{actor}.grad_clip": grpo.max_grad_norm,
        f"{rollout}.name": "vllm",
        f"{rollout}.load_format": "safetensors",
        f"{rollout}.tensor_model_parallel_size": 1,
        f"{rollout}.gpu_memory_utilization": 0.5,
        f"{rollout}.log_prob_micro_batch_size_per_gpu": micro,
        f"{rollout}.n": grpo.num_generations,
        f"{rollout}.temperature": grpo.temperature,
        f"{rollout}.top_p": grpo.top_p,
        f"{rollout}.top_k": grpo.top_k or -1,
        f"{rollout}.val_kwargs.n": evaluation.num_generations,
        f"{rollout}.val_kwargs.do_sample": evaluation.temperature > 0,
        f"{rollout}.val_kwargs.temperature": evaluation.temperature,
        f"{rollout}.val_kwargs.top_p": evaluation.top_p,
        f"{rollout}.val_kwargs.top_k": evaluation.top_k or -1,
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": micro,
        "custom_reward_function.path": f"{bundle.out}/reward.py",
        "custom_reward_function.name": "compute_score",
        "trainer.n_gpus_per_node": bundle.gpus,
        "trainer.nnodes": 1,
        "trainer.total_training_steps": grpo.max_steps,
        "trainer.total_epochs": bundle.epochs(grpo.max_steps),
        "trainer.save_freq": grpo.save_steps,
        "trainer.test_freq": grpo.eval_steps or -1,
        "trainer.val_before_train": False,
        "trainer.logger": ["console", *(name for name in config.run.report_to if name in ("tensorboard", "wandb"))],
        "trainer.project_name": "grpo-kit",
        "trainer.experiment_name": config.run.name,
        "trainer.default_local_dir": f"{bundle.out}/results",
    }


def _hydra(value: Any) -> str:
    """A value as Hydra reads it on a shell's line."""
    if isinstance(value, list):
        return shlex.quote("[" + ",".join(str(item) for item in value) + "]")
    return shlex.quote(str(value))


def _not_carried(bundle: Bundle) -> list[str]:
    config = bundle.config
    found = [
        "Optimiser state, the step counter and the book of pass rates stay here; the engine counts from 0.",
        "Completions that were cut count in the loss there; verl has no mask for them.",
        f"The machine is written as {bundle.gpus} GPUs of one node, the most up to 8 that share {bundle.batch} completions "
        "evenly; memory and parallelism were not computed. Whether verl and vLLM of your version take this model and its "
        "LoRA was not tried.",
    ]
    others = [f"{name} (weight {weight})" for (_, name), weight in zip(bundle.rewards(), config.grpo.reward_weights)][
        1:
    ]
    if others:
        found.append(
            f"verl is given one score, the verifier's; {', '.join(others)}: add it in `compute_score` if you want it."
        )
    if config.grpo.advantage == "leave_one_out" and config.grpo.normalize_rewards:
        found.append("verl's rloo does not divide by the standard deviation (grpo.normalize_rewards).")
    if config.grpo.stages:
        found.append("verl has no stages: the longest length and the first stage's clip, KL and learning rate are set.")
    if not bundle.rows["val"]:
        found.append(
            "The run has no validation rows and verl wants some: the training rows stand in, and are never measured."
        )
    return found
