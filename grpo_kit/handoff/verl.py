"""The run for verl: Parquet files of rows, the first reward as `compute_score`, its check, and `run.sh`.

verl 0.7.1 and 0.9.1 composed the settings from `run.sh` with their own configuration, and their reward managers paid
this reward; no training was run with verl here. verl takes one score per completion, so only the first reward is
exported. From 0.9 on verl ignores `custom_reward_function.path`, in silence, and pays by the name of a row's source;
0.7.1 is the first to read `reward.custom_reward_function.path`. So `run.sh` starts with `check_reward.py`.
"""

import pprint
import re
import shlex
from pathlib import Path
from string import Template
from typing import Any

from grpo_kit.handoff.bundle import Bundle, chat_turns
from grpo_kit.handoff.gpu_memory import Placement, place_on_gpus
from grpo_kit.rewards.tools.loading import load_reward
from grpo_kit.runs.files import write_text

VERSION = "0.9.1"  # what the README installs; `check_reward.py` accepts 0.7.1 and later ones before 0.10
INSTALL = f'pip install "verl[vllm,math]=={VERSION}"'  # vllm brings verl-core: transfer_queue, which 0.9 imports
CHECK = Path(__file__).with_name("check_reward.py.txt")

READ_COLUMNS = ("prompt_opened_think", "enable_thinking")  # of `extra_info`, which rewards read
FOOTER = '''

def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    """verl calls this: the reward of {name} for one completion, or 0.0 if the reference answer cannot be used."""
    row = extra_info or {{}}
    columns = {{key: [row[key]] for key in {columns} if row.get(key) is not None}}
    (reward,) = {name}(completions=[solution_str], answer=[ground_truth], **columns)
    return 0.0 if reward is None else float(reward)
'''
# verl imports this before it builds a model (actor_rollout_ref.model.external_lib).
PATCHES = "patch_nemotron"
PATCHES_TEXT = '''"""Let transformers' Mamba train a LoRA on out_proj, and limit no time step, as in sampling."""

from peft.tuners import tuners_utils
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHMamba2Mixer

make = NemotronHMamba2Mixer.__init__


def make_without_fused_kernel(self, *args, **kwargs):
    """That kernel would skip the LoRA, which is why PEFT refuses it."""
    make(self, *args, **kwargs)
    self.use_mem_eff_path = False
    self.time_step_limit = (0.0, float("inf"))


NemotronHMamba2Mixer.__init__ = make_without_fused_kernel
tuners_utils._check_lora_target_modules_mamba = lambda *args, **kwargs: None
'''
SCRIPT = """#!/bin/sh
# GRPO continues from adapter/; further arguments are passed on. First verl shows that it pays reward.py.
set -e
cd "$(dirname "$0")"
export PYTHONPATH="$PWD${{PYTHONPATH:+:$PYTHONPATH}}"
python3 check_reward.py "$@"
exec python3 -m verl.trainer.main_ppo \\
  {settings} \\
  "$@"
"""
# What Hydra reads as the same text without quotes; `true`, `null`, `nan`, `inf` and numbers it reads as values.
PLAIN = re.compile(r"(?!(?i:true|false|null|nan|inf)\Z)[A-Za-z/_][\w./-]*", re.ASCII)
AGGREGATES = {"dapo": "token-mean", "bnpo": "token-mean", "cispo": "token-mean", "dr_grpo": "seq-mean-token-sum-norm"}


def write_files(bundle: Bundle) -> tuple[str, list[str]]:
    """Fill the bundle's folder. Returns (how to start, as Markdown; sentences on what does not carry over)."""
    import pyarrow
    from pyarrow import parquet

    for split in ("train", "val"):
        if rows := make_rows(bundle, split):
            parquet.write_table(pyarrow.Table.from_pylist(rows), bundle.folder / f"{split}.parquet")
    path, name = bundle.verifier
    write_text(bundle.folder / "reward.py", make_reward_file(path.read_text(encoding="utf-8"), name))
    write_text(bundle.folder / "check_reward.py", make_check(bundle))
    placement = place_on_gpus(bundle)
    if placement:
        write_text(bundle.folder / f"{PATCHES}.py", PATCHES_TEXT)
    words = [f"{key}={_hydra(value)}" for key, value in make_settings(bundle, placement).items()]
    settings = " \\\n  ".join(map(shlex.quote, words))
    write_text(bundle.folder / "run.sh", SCRIPT.format(settings=settings))
    return _start(bundle, placement), _not_carried(bundle)


def make_rows(bundle: Bundle, split: str) -> list[dict[str, Any]]:
    """verl's rows of a split, with the reference answer under `reward_model`."""
    open_thinking = bundle.prompts_open_thinking(split)
    return [
        {
            "data_source": str(row["source"]),
            "prompt": chat_turns(row),
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": str(row["answer"])},
            "extra_info": {
                "split": split,
                "index": index,
                "id": row["id"],
                "prompt_opened_think": opens,
                "enable_thinking": row.get("enable_thinking"),
            },
        }
        for index, (row, opens) in enumerate(zip(bundle.rows[split], open_thinking, strict=True))
    ]


def make_reward_file(source: str, name: str) -> str:
    """The text of `reward.py`: a reward's whole file, followed by `compute_score`."""
    return source.rstrip("\n") + "\n" + FOOTER.format(name=name, columns=READ_COLUMNS)


def make_check(bundle: Bundle) -> str:
    """The text of `check_reward.py`: what the first reward pays now for four replies to the first row."""
    row = make_rows(bundle, "train")[0]
    gold, info = row["reward_model"]["ground_truth"], row["extra_info"]
    other = f"{gold}.0" if gold.lstrip("-").isdigit() else rf"\,{gold}"
    answers = {
        "the right answer": rf"\boxed{{{gold}}}",
        "a wrong answer": rf"\boxed{{{gold}9}}",
        "no answer": "I do not know.",
        "the right answer, written differently": rf"\boxed{{{other}}}",
    }
    texts = [("I think.</think>" if info["prompt_opened_think"] else "") + answer for answer in answers.values()]
    columns = {key: [info[key]] * len(texts) for key in READ_COLUMNS if info[key] is not None}
    path, name = bundle.verifier
    paid = load_reward(f"{path}:{name}")(completions=texts, answer=[gold] * len(texts), **columns)
    replies = list(zip(answers, texts, [float(score or 0) for score in paid], strict=True))
    text = Template(CHECK.read_text(encoding="utf-8"))
    return text.substitute(install=INSTALL, row=pprint.pformat(row, width=110), replies=pprint.pformat(replies, 4, 110))


def make_settings(bundle: Bundle, placement: Placement | None) -> dict[str, Any]:
    """{verl's key: value}; a `+` stands before keys that verl's configuration does not have yet."""
    config, grpo, evaluation = bundle.config, bundle.config.grpo, bundle.config.evaluation
    part = bundle.parts()[0]
    actor, model, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.model", "actor_rollout_ref.rollout"
    length = max(stage.length for stage in bundle.parts())
    micro = bundle.micro_batch
    clip_below = 1.0 if grpo.loss_type == "cispo" else grpo.epsilon  # TRL's weight of cispo has no lower bound
    settings = {
        "algorithm.adv_estimator": "rloo" if grpo.advantage == "leave_one_out" else "grpo",
        "algorithm.norm_adv_by_std_in_grpo": grpo.normalize_rewards,
        "algorithm.use_kl_in_reward": False,
        "data.train_files": f"{bundle.out}/train.parquet",
        "data.val_files": f"{bundle.out}/{'val' if bundle.rows['val'] else 'train'}.parquet",
        "data.train_batch_size": bundle.prompts_per_step,
        "data.max_prompt_length": bundle.prompt_tokens,
        "data.max_response_length": length,
        "data.shuffle": not bundle.keeps_order,
        "++data.seed": config.run.seed,
        "+data.apply_chat_template_kwargs.enable_thinking": config.policy.enable_thinking,
        f"{model}.path": bundle.base_model,
        f"{model}.lora_adapter_path": f"{bundle.out}/adapter",
        f"{model}.lora_rank": config.lora.r,
        f"{model}.lora_alpha": config.lora.lora_alpha,
        f"{model}.target_modules": bundle.target_modules,
        f"{model}.enable_gradient_checkpointing": grpo.gradient_checkpointing,
        f"{actor}.optim.lr": part.learning_rate,
        f"{actor}.optim.lr_warmup_steps": 0 if grpo.lr_scheduler_type == "constant" else grpo.warmup_steps,
        f"{actor}.optim.weight_decay": 0.0,
        f"{actor}.ppo_mini_batch_size": bundle.prompts_per_step,
        f"{actor}.ppo_micro_batch_size_per_gpu": micro,
        f"{actor}.ppo_epochs": grpo.num_iterations,
        f"{actor}.clip_ratio_low": clip_below,
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
        f"{rollout}.tensor_model_parallel_size": placement.tensor_parallel if placement else 1,
        f"{rollout}.gpu_memory_utilization": placement.share if placement else 0.5,
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
        "reward.custom_reward_function.path": f"{bundle.out}/reward.py",
        "reward.custom_reward_function.name": "compute_score",
        "trainer.n_gpus_per_node": bundle.gpus,
        "trainer.nnodes": 1,
        "trainer.total_training_steps": grpo.max_steps,
        "trainer.total_epochs": bundle.count_epochs(grpo.max_steps),
        "trainer.save_freq": grpo.save_steps,
        "trainer.test_freq": grpo.eval_steps or -1,
        "trainer.val_before_train": False,
        "trainer.logger": ["console", *(name for name in config.run.report_to if name in ("tensorboard", "wandb"))],
        "trainer.project_name": "grpo-kit",
        "trainer.experiment_name": config.run.name,
        "trainer.default_local_dir": f"{bundle.out}/results",
    }
    if placement:  # a Nemotron-H
        settings |= {
            f"{model}.external_lib": PATCHES,
            f"{model}.use_remove_padding": False,  # packed rows would read the Mamba state of the row before
            f"+{model}.override_config.attn_implementation": "sdpa",  # verl's default needs flash-attn
        }
    return settings


def _hydra(value: Any) -> str:
    """A value in the form in which Hydra reads it; backslashes are doubled before a quotation mark and the end only."""
    if isinstance(value, list):
        return "[" + ",".join(map(_hydra, value)) + "]"
    if not isinstance(value, str) or PLAIN.fullmatch(value):
        return str(value)
    return '"' + re.sub(r'(\\*)("|\Z)', lambda end: 2 * end[1] + '\\"' * bool(end[2]), value) + '"'


def _start(bundle: Bundle, placement: Placement | None) -> str:
    here = shlex.quote(str(bundle.out))
    gpus = f"{bundle.gpus} GPU{'s' * (bundle.gpus > 1)} of one node"
    memory = placement.words if placement else "The memory was not computed: this base is not a Nemotron-H."
    return "\n".join(
        [
            f"    {INSTALL}",
            f"    python {here}/check_reward.py   # verl loads the reward and scores four replies; needs no GPU",
            f"    sh {here}/run.sh                # checks the same, then trains",
            "",
            f"For verl 0.7.1 to 0.9.1 and {gpus}, the most up to 8 that share the {bundle.completions_per_step} "
            f"completions of a step evenly. {memory}",
            "",
            "Both commands refuse other versions, which may pay another reward: verl up to 0.7.0 reads the reward from "
            "`custom_reward_function`, and this folder names it in `reward.custom_reward_function`; 0.10 and later "
            "were not seen. Both commands take further settings, such as `trainer.nnodes=2`.",
            "",
            "Run by us on a CPU: `check_reward.py` with verl 0.7.1 and 0.9.1, which composes all settings; with 0.9.1 "
            "and transformers 5.9.0 also verl's FSDP engine on the embedded policy (two processes, three updates, a "
            "checkpoint that came back as the same adapter). Not run: a whole training with verl, its vLLM, any GPU.",
            "",
        ]
    )


def _not_carried(bundle: Bundle) -> list[str]:
    config = bundle.config
    sentences = [
        "The optimiser state, the step counter and the pass rates of prompts are not exported; steps count from 0.",
        "Truncated completions count in the loss; verl cannot mask them.",
    ]
    rewards = zip(bundle.rewards(), config.grpo.reward_weights)
    _, *others = (f"{name} (weight {weight})" for (_, name), weight in rewards)
    if others:
        sentences.append(
            f"verl takes one score, that of the first reward. Not exported: {', '.join(others)}; add it in "
            "`compute_score` if you want it."
        )
    if config.grpo.advantage == "leave_one_out" and config.grpo.normalize_rewards:
        sentences.append("verl's rloo does not divide by the standard deviation (grpo.normalize_rewards).")
    if config.grpo.stages:
        sentences.append("verl has no stages: `run.sh` has the longest length and the first stage's clip, KL and rate.")
    if not bundle.rows["val"]:
        sentences.append(
            "The run has no validation rows, but verl needs some: it gets the training rows and never measures on them."
        )
    return sentences
