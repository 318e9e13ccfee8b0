"""What a step costs beside the arithmetic: the 30B's layers and experts at narrow widths, where little else is left.

52 layers, 128 experts each, widths of about 64, random weights in 4 bit, the LoRA of preset `t4`. Counted are PyTorch's
operations of one decoding step, batch 8 (all of them, and those that are no views), and the processor seconds of a
decoding step and of a training micro-batch of 2 x 96 tokens with checkpointing. The decoding kernel, which needs a GPU,
is replaced by a function that does nothing, so its two launches a layer count as none.

The same script runs on an earlier commit in the same call, in a checkout of its own, and the two take turns; the bars
are ratios to it.

    python benchmarks/step_overhead.py                    # against BASE
    python benchmarks/step_overhead.py --against none     # this checkout alone
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import report

ROOT = Path(__file__).resolve().parents[1]
BASE = "b18eac3"  # before the step was made lighter
NARROW = {
    "hidden_size": 64, "vocab_size": 272, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 16, "n_groups": 2, "moe_intermediate_size": 64,
    "moe_shared_expert_intermediate_size": 64, "eos_token_id": 11, "bos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
ROWS, PROMPT, FEW, MANY = 8, 16, 4, 20  # rows that are sampled, tokens of their prompt, two lengths of completion
MICRO_BATCH, SEQUENCE, R = 2, 96, 16
TOGETHER = 6  # experts that the 30B's widths let be dequantised at once; all 128 narrow ones would be
ROUNDS, QUICK_ROUNDS, TRIES = 3, 1, 3
BARS = {"calls": 1200, "decode": 0.4, "train": 0.35}  # operations that are no views; ratios to BASE


def main() -> None:
    if sys.argv[1:] == ["--alone"]:
        print(json.dumps(measure()))
        return
    arguments = report.arguments(__doc__, against=(BASE, "none"))
    rounds = QUICK_ROUNDS if arguments.quick else ROUNDS
    with tempfile.TemporaryDirectory() as scratch:
        checkouts = {"now": ROOT}
        if arguments.against != "none":
            checkouts["base"] = Path(scratch) / "base"
            subprocess.run(
                ["git", "-C", ROOT, "worktree", "add", "-q", "--detach", checkouts["base"], arguments.against],
                check=True,
            )
        try:
            measured: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
            for number in range(rounds):
                for name, checkout in list(checkouts.items())[:: 1 if number % 2 == 0 else -1]:
                    measured[name].append(run_in(checkout))
        finally:
            if "base" in checkouts:
                subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", checkouts["base"]], check=True)
    rows, figures = [], {}
    for key, (name, unit) in FIGURES.items():
        medians = {side: statistics.median(one[key] for one in ones) for side, ones in measured.items()}
        row = {"figure": f"{name}, {unit}", "now": f"{medians['now']:.4g}"}
        if "base" in medians:
            row |= {BASE: f"{medians['base']:.4g}", "ratio": f"{medians['now'] / medians['base']:.3f}"}
            figures[f"{key}_ratio"] = round(medians["now"] / medians["base"], 3)
        rows.append(row | {"bar": BARS.get(key, "")})
        figures[key] = round(medians["now"], 4)
    report.finish("step_overhead", rows, figures | {"rounds": rounds}, arguments.record)


FIGURES = {
    "all_calls": ("operations of a decoding step", "with views"),
    "calls": ("operations of a decoding step", "no views"),
    "decode": ("a decoding step", "processor s"),
    "train": ("a training micro-batch", "processor s"),
    "train_calls": ("operations of a training micro-batch", "no views"),
}


def run_in(checkout: Path) -> dict[str, float]:
    """The figures of this script with the package of a checkout."""
    environ = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environ |= {"TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore::FutureWarning"}
    words = [sys.executable, __file__, "--alone"]
    done = subprocess.run(words, env=environ, cwd=checkout, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure() -> dict[str, float]:
    """{figure: value} of the package that is imported."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        model = build_model(Path(scratch))
    figures = measure_decoding(model)
    return figures | measure_training(model)


def build_model(folder: Path) -> Any:
    """The narrow 30B with the LoRA of preset `t4`, whose B is not zero."""
    import random_nemotron
    import torch

    from grpo_kit import config
    from grpo_kit.adapters.lora import add_lora
    from grpo_kit.nemotron import base_models

    preset = config.load_config(["t4"])
    fields = json.loads(base_models.CONFIGS[preset.policy.model].read_text()) | NARROW
    (folder / "config.json").write_text(json.dumps(fields))
    torch.manual_seed(0)
    model = random_nemotron.tiered(folder, torch.float32, "cpu", 0.0)
    for layer in model.modules():  # by the name of the class, which moves less than its module: BASE runs this as well
        if type(layer).__name__ == "TieredExperts":
            layer.bench.together = TOGETHER
    model = add_lora(model, preset.lora, 0)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            value.data.normal_(std=0.01)
    return model


def measure_decoding(model: Any) -> dict[str, float]:
    """Operations and processor seconds of one more token, from completions of two lengths."""
    import torch

    from grpo_kit.nemotron import expert_kernel

    usable, run_experts = expert_kernel.is_usable, expert_kernel.run_experts
    expert_kernel.is_usable, expert_kernel.run_experts = (lambda *_: True), (lambda *told, **more: told[5].zero_())
    prompts = torch.randint(20, 270, (ROWS, PROMPT))

    def sample(tokens: int) -> None:
        torch.manual_seed(0)
        with torch.inference_mode():
            model.generate(
                input_ids=prompts, attention_mask=torch.ones_like(prompts), do_sample=True, max_new_tokens=tokens,
                min_new_tokens=tokens, pad_token_id=0,
            )  # fmt: skip

    try:
        model.eval()
        sample(FEW)
        counted = [count(lambda tokens=tokens: sample(tokens)) for tokens in (FEW, MANY)]
        seconds = [processor_seconds(lambda tokens=tokens: sample(tokens)) for tokens in (FEW, MANY)]
    finally:
        expert_kernel.is_usable, expert_kernel.run_experts = usable, run_experts
    each = [(many - few) / (MANY - FEW) for few, many in zip(*counted)]
    return {"all_calls": each[0], "calls": each[1], "decode": (seconds[1] - seconds[0]) / (MANY - FEW)}


def measure_training(model: Any) -> dict[str, float]:
    """Operations and processor seconds of one forward and backward pass with checkpointing."""
    import torch

    model.train()
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    tokens = torch.randint(20, 270, (MICRO_BATCH, SEQUENCE))

    def train() -> None:
        model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits.float().logsumexp(-1).mean().backward()

    train()
    return {"train": processor_seconds(train), "train_calls": count(train)[1]}


def count(work: Any) -> tuple[int, int]:
    """(operations, operations that are no views) that PyTorch dispatches while `work` runs."""
    from torch.utils._python_dispatch import TorchDispatchMode

    counts = [0, 0]

    class Counter(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            counts[0] += 1
            counts[1] += not function.is_view
            return function(*args, **(kwargs or {}))

    with Counter():
        work()
    return counts[0], counts[1]


def processor_seconds(work: Any) -> float:
    """Processor seconds of this process while `work` runs, the least of TRIES."""
    seconds = []
    for _ in range(TRIES):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return min(seconds)


if __name__ == "__main__":
    main()
