"""The run for TRL alone: `train.py` of one screen, the rewards' files, rows, tokenizer, and the commands for more GPUs.

Nothing in the folder asks for this package; the settings are what the run's `GRPOConfig` was made of, each spelled out,
because TRL's own defaults are others.
"""

import re
import shlex
import shutil
from importlib import metadata
from pathlib import Path
from string import Template
from typing import Any

from grpo_kit.handoff.bundle import Bundle, turns
from grpo_kit.policy.chat import template_conversations
from grpo_kit.runs.files import write_lines, write_text

TEMPLATE = Path(__file__).with_name("train.py.txt")


def write(bundle: Bundle) -> tuple[str, list[str]]:
    """Fill the bundle's folder; returns (how to start it, Markdown; what does not carry over, sentences)."""
    from grpo_kit.training.trl_settings import trl_arguments

    for split in ("train", "val"):
        if bundle.rows[split]:
            write_lines(bundle.aside / f"{split}.jsonl", rows(bundle, split))
    bundle.tokenizer.save_pretrained(bundle.aside / "tokenizer")
    modules = reward_modules(bundle)
    for path, name in modules.items():
        (bundle.aside / "rewards").mkdir(exist_ok=True)
        shutil.copyfile(path, bundle.aside / "rewards" / f"{name}.py")
    config, functions = bundle.config, [name for _, name in bundle.rewards()]
    own = [f"reward_{number}" for number in range(1, len(functions) + 1)]
    imports = [
        f"from rewards.{modules[path]} import {function} as {name}"
        for name, (path, function) in zip(own, bundle.rewards(), strict=True)
    ]
    told = trl_arguments(config) | {"run_name": config.run.name}
    for key in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        del told[key]
    base = '"base"' if config.policy.model == "tiny" else repr(bundle.base)
    text = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        trl=metadata.version("trl"), imports="\n".join(sorted(imports)), rewards=", ".join(own), batch=bundle.batch,
        micro=config.grpo.per_device_train_batch_size, base=base, dtype=config.policy.dtype, save=config.grpo.save_steps,
        settings="\n".join(f"    {key}={value!r}," for key, value in told.items()),
    )  # fmt: skip
    write_text(bundle.aside / "train.py", text)
    write_text(bundle.aside / "accelerate.yaml", accelerate(bundle))
    return _start(bundle), _not_carried(bundle)


def rows(bundle: Bundle, split: str) -> list[dict[str, Any]]:
    """The rows as TRL hands them to the rewards: the conversation, the gold, and what rewards ask of a prompt.

    Where rows have a word of their own on thinking it rides on their last turn, and the tokenizer's template heeds it.
    """
    of_split = bundle.rows[split]
    asked = template_conversations(bundle.tokenizer, of_split, bundle.config.policy.enable_thinking)
    found = []
    for row, conversation, opens in zip(of_split, asked, bundle.opened_think(split), strict=True):
        own = {key: conversation[-1][key] for key in ("enable_thinking",) if key in conversation[-1]}
        prompt = [*turns(row)[:-1], turns(row)[-1] | own]
        found.append(
            {"prompt": prompt, "answer": str(row["answer"]), "prompt_opened_think": opens, "id": row["id"]} | own
        )
    return found


def reward_modules(bundle: Bundle) -> dict[Path, str]:
    """{reward file: what it is called in `rewards/`}: its own name as far as Python can import it, told apart."""
    found: dict[Path, str] = {}
    for path, _ in bundle.rewards():
        name = re.sub(r"\W", "_", path.stem)
        name = name if name.isidentifier() else f"reward_{name}"
        while path not in found and name in found.values():
            name += "_"
        found.setdefault(path, name)
    return found


def accelerate(bundle: Bundle) -> str:
    """accelerate's configuration for two processes, one GPU each."""
    grpo = bundle.config.grpo
    return (
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\nnum_machines: 1\nmachine_rank: 0\n"
        f"num_processes: 2\ngpu_ids: all\nmixed_precision: '{'fp16' if grpo.fp16 else 'bf16' if grpo.bf16 else 'no'}'\n"
        "main_training_function: main\nuse_cpu: false\n"
    )


def _start(bundle: Bundle) -> str:
    here = shlex.quote(str(bundle.out))
    return "\n".join(
        [
            f"    pip install trl=={metadata.version('trl')} peft=={metadata.version('peft')} math-verify",
            f"    python {here}/train.py   # one process, no vLLM",
            "",
            "Several GPUs, one of which samples (`pip install trl[vllm]`); the two commands run side by side:",
            "",
            f"    CUDA_VISIBLE_DEVICES=0 trl vllm-serve --model {shlex.quote(bundle.base)}",
            f"    CUDA_VISIBLE_DEVICES=1,2 accelerate launch --config_file {here}/accelerate.yaml {here}/train.py --vllm",
            "",
            f"The number of processes has to divide {bundle.batch}, the completions of a step; `--num_processes` sets another.",
            "`trained/` then holds the adapter.",
            "",
        ]
    )


def _not_carried(bundle: Bundle) -> list[str]:
    grpo, policy = bundle.config.grpo, bundle.config.policy
    found = [
        "Optimiser state, the step counter and the book of pass rates stay here; TRL counts from 0 and draws rows its own way: "
        "a group whose answers are all alike is not replaced (grpo.resample_budget).",
        "`train.py` does not evaluate; the validation rows lie beside it.",
        "Random numbers go by process there: the same seed draws other completions.",
    ]
    if grpo.advantage == "leave_one_out":
        found.append("TRL has the group's mean as baseline only (grpo.advantage).")
    if grpo.stages:
        found.append("TRL has no stages: the longest length and grpo's own clip, KL and learning rate are set.")
    if policy.load_in_4bit:
        found.append(
            "The base is loaded in 16 bit: bitsandbytes alone leaves routed experts unquantised (policy.load_in_4bit)."
        )
    if "out_proj" in " ".join(bundle.config.lora.target_modules):
        found.append("PEFT refuses a LoRA on Mamba's out_proj; here it was allowed with the fused kernel switched off.")
    return found
