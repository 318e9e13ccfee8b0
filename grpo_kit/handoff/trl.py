"""The run for TRL alone: a short `train.py`, the files of the rewards, rows, tokenizer, and commands for more GPUs.

Nothing in the folder imports this package. `train.py` spells out every setting of the run's `GRPOConfig`, because TRL's
defaults differ from ours.
"""

import re
import shlex
import shutil
from importlib import metadata
from pathlib import Path
from string import Template
from typing import Any

from grpo_kit.handoff.bundle import Bundle, chat_turns
from grpo_kit.nemotron import tiny
from grpo_kit.policy.chat import template_conversations
from grpo_kit.runs.files import write_lines, write_text

TEMPLATE = Path(__file__).with_name("train.py.txt")


def write_files(bundle: Bundle) -> tuple[str, list[str]]:
    """Fill the bundle's folder. Returns (how to start, as Markdown; sentences on what does not carry over)."""
    from grpo_kit.training.trl_settings import trl_arguments

    for split in ("train", "val"):
        if bundle.rows[split]:
            write_lines(bundle.folder / f"{split}.jsonl", make_rows(bundle, split))
    bundle.tokenizer.save_pretrained(bundle.folder / "tokenizer")
    modules = name_reward_modules(bundle)
    for path, name in modules.items():
        (bundle.folder / "rewards").mkdir(exist_ok=True)
        shutil.copyfile(path, bundle.folder / "rewards" / f"{name}.py")
    config, functions = bundle.config, [name for _, name in bundle.rewards()]
    names = [f"reward_{number}" for number in range(1, len(functions) + 1)]
    imports = [
        f"from rewards.{modules[path]} import {function} as {name}"
        for name, (path, function) in zip(names, bundle.rewards(), strict=True)
    ]
    settings = trl_arguments(config) | {"run_name": config.run.name}
    for key in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        del settings[key]
    base = '"base"' if config.policy.model in tiny.FOLDERS else repr(bundle.base_model)
    text = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        trl=metadata.version("trl"),
        imports="\n".join(sorted(imports)),
        rewards=", ".join(names),
        batch=bundle.completions_per_step,
        micro=config.grpo.per_device_train_batch_size,
        base=base,
        dtype=config.policy.dtype,
        save=config.grpo.save_steps,
        settings="\n".join(f"    {key}={value!r}," for key, value in settings.items()),
    )
    write_text(bundle.folder / "train.py", text)
    write_text(bundle.folder / "accelerate.yaml", make_accelerate_config(bundle))
    return _start(bundle), _not_carried(bundle)


def make_rows(bundle: Bundle, split: str) -> list[dict[str, Any]]:
    """The rows as TRL passes them to the rewards: conversation, reference answer, and columns that rewards read.

    If a row sets `enable_thinking` itself, its last turn carries that, and the tokenizer's template follows it.
    """
    rows = bundle.rows[split]
    conversations = template_conversations(bundle.tokenizer, rows, bundle.config.policy.enable_thinking)
    records = []
    for row, conversation, opens in zip(rows, conversations, bundle.prompts_open_thinking(split), strict=True):
        own = {key: conversation[-1][key] for key in ("enable_thinking",) if key in conversation[-1]}
        prompt = [*chat_turns(row)[:-1], chat_turns(row)[-1] | own]
        records.append(
            {"prompt": prompt, "answer": str(row["answer"]), "prompt_opened_think": opens, "id": row["id"]} | own
        )
    return records


def name_reward_modules(bundle: Bundle) -> dict[Path, str]:
    """{reward file: its module in `rewards/`}: its own name, changed if Python cannot import it or another has it."""
    modules: dict[Path, str] = {}
    for path, _ in bundle.rewards():
        name = re.sub(r"\W", "_", path.stem)
        name = name if name.isidentifier() else f"reward_{name}"
        while path not in modules and name in modules.values():
            name += "_"
        modules.setdefault(path, name)
    return modules


def make_accelerate_config(bundle: Bundle) -> str:
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
            f"For TRL {metadata.version('trl')} and PEFT {metadata.version('peft')}, on one GPU or more. Run by us: "
            "`train.py` of the embedded policy in one process on a CPU. Not run: several GPUs, vLLM's server, the 30B.",
            "",
            f"    pip install trl=={metadata.version('trl')} peft=={metadata.version('peft')} math-verify",
            f"    python {here}/train.py   # one process, no vLLM",
            "",
            "Several GPUs, one of which samples (`pip install trl[vllm]`); run the two commands side by side:",
            "",
            f"    CUDA_VISIBLE_DEVICES=0 trl vllm-serve --model {shlex.quote(bundle.base_model)}",
            "    CUDA_VISIBLE_DEVICES=1,2 accelerate launch "  # one line with the next
            f"--config_file {here}/accelerate.yaml {here}/train.py --vllm",
            "",
            f"The number of processes must divide {bundle.completions_per_step}, the completions of a step; "
            "`--num_processes` changes it.",
            "The trained adapter is written to `trained/`.",
            "",
        ]
    )


def _not_carried(bundle: Bundle) -> list[str]:
    grpo, policy = bundle.config.grpo, bundle.config.policy
    sentences = [
        "The optimiser state, the step counter and the pass rates of prompts are not exported. TRL counts steps from 0 "
        "and chooses rows itself: groups with equal rewards for all answers are not replaced (grpo.resample_budget).",
        "`train.py` does not evaluate; the validation rows are beside it.",
        "TRL draws random numbers per process: the same seed gives other completions.",
    ]
    if grpo.advantage == "leave_one_out":
        sentences.append("TRL's only baseline is the mean of the group (grpo.advantage).")
    if grpo.stages:
        sentences.append(
            "TRL has no stages: `train.py` has the longest length and grpo's own clip, KL and learning rate."
        )
    if policy.load_in_4bit:
        sentences.append(
            "The base is loaded in 16 bit: bitsandbytes alone leaves routed experts unquantised (policy.load_in_4bit)."
        )
    if "out_proj" in " ".join(bundle.target_modules):
        sentences.append(
            "PEFT refuses a LoRA on Mamba's out_proj; `train.py` switches off this check and that fused kernel."
        )
    return sentences
