"""Which experts a decoding step copies from the host, how many of them a guess names early, and what lies in the slots.

A third of the experts lie on the host, as on a T4. The choices of two policies are recorded while they sample: the
embedded one (2 MoE layers of 8 experts) and the 30B's layers and experts (23 of 128) at narrow widths with random
weights and norms. They are replayed through `TieredExperts.decode` with launches left out, so slots and copies are
real. Guesses: none, the experts of the layer's last token, and the early router
(grpo_kit/nemotron/decoding/early_router.py), each with a fixed number of copies ahead in a layer; on a GPU their number
follows how many arrive in time. Figures are experts of a step, and the share of the guesses that was right.

    python benchmarks/host_copies.py
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import report
import step_overhead

SHARE, PROMPT, TOKENS, QUICK_TOKENS = 0.35, 16, 32, 10
SLOTS = 8
CASES = [  # guess, copies ahead in a layer, slots
    ("none", 0, SLOTS), ("none", 0, 256), ("none", 0, 512), ("last token", 4, SLOTS), ("last token", 8, SLOTS),
    ("early router", 4, SLOTS), ("early router", 8, SLOTS),
]  # fmt: skip


def main() -> None:
    arguments = report.arguments(__doc__)
    tokens = QUICK_TOKENS if arguments.quick else TOKENS
    rows, figures = [], {}
    for name, make in {"embedded": make_embedded, "30B": make_random}.items():
        for count in (8, 1):
            model, prompts = make(count)
            calls = record(model, prompts, tokens)
            for guess, ahead, slots in CASES:
                counts = replay(model, calls, guess, ahead, slots)
                row = {"policy": f"{name} x {count}", "slots": slots, "guess": guess, "ahead": ahead}
                rows.append(row | {key: f"{value:.3g}" for key, value in counts.items()})
                if ahead == 4:
                    figures[f"{name}_{count}_{guess.replace(' ', '_')}_right".lower()] = round(counts["right"], 3)
    report.finish("host_copies", rows, figures, arguments.record)


def make_embedded(rows: int) -> tuple[Any, Any]:
    """(the embedded policy, prompts)."""
    from sampling import Work, make_batch

    from grpo_kit import config
    from grpo_kit.nemotron.placement.placing import install_tiered_experts
    from grpo_kit.policy.load import load_policy

    model, tokenizer = load_policy(config.Policy())
    install_tiered_experts(model, SHARE)
    return model, dict(make_batch(tokenizer, Work(rows, 1, 0, True), 0))


def make_random(rows: int) -> tuple[Any, Any]:
    """(the 30B's layers and experts, narrow and random, prompts)."""
    import random_nemotron
    import torch

    from grpo_kit.nemotron import base_models

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        model_name = "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"
        fields = json.loads(base_models.CONFIGS[model_name].read_text()) | step_overhead.NARROW
        (Path(scratch) / "config.json").write_text(json.dumps(fields))
        model = random_nemotron.tiered(Path(scratch), torch.float32, "cpu", SHARE)
    for name, value in model.named_parameters():
        if name.endswith("norm.weight"):
            value.data.uniform_(0.5, 1.5)
    prompts = torch.randint(20, 270, (rows, PROMPT))
    return model, {"input_ids": prompts, "attention_mask": torch.ones_like(prompts)}


def record(model: Any, prompts: Any, tokens: int) -> list[tuple[Any, Any, Any, Any]]:
    """(layer, its input, choice, weights) of every layer with experts in every decoding step."""
    import torch

    from grpo_kit.nemotron import expert_groups, expert_kernel, experts

    calls, kept, rows = [], (expert_kernel.is_usable, experts.TieredExperts.decode), len(prompts["input_ids"])

    def decode(layer: Any, hidden: Any, index: Any, weights: Any, loras: Any = ()) -> Any:
        if len(index) == rows:  # a short prompt may be read by the kernel too
            calls.append((layer, hidden.clone(), index, weights))
        return expert_groups.RoutedExperts.apply(hidden, index, weights, layer, {}, False)

    expert_kernel.is_usable, experts.TieredExperts.decode = (lambda *_: True), decode
    try:
        torch.manual_seed(0)
        with torch.inference_mode():
            model.generate(**prompts, do_sample=True, max_new_tokens=tokens, min_new_tokens=tokens, pad_token_id=0)
    finally:
        expert_kernel.is_usable, experts.TieredExperts.decode = kept
    return calls


def replay(model: Any, calls: list[tuple[Any, Any, Any, Any]], guess: str, ahead: int, slots: int) -> dict[str, float]:
    """(experts of a step: on the host and chosen, copied, copied ahead in vain; the share of right guesses)."""
    import torch

    from grpo_kit.nemotron import expert_kernel
    from grpo_kit.nemotron.decoding.early_router import EarlyRouter
    from grpo_kit.nemotron.expert_workbench import Workbench
    from grpo_kit.nemotron.placement.tiered_layers import find_tiered_layers

    layers = list(find_tiered_layers(model).values())
    bench = Workbench(layers[0].geometry, torch.device("cpu"), torch.float32, slots)
    last: dict[Any, Any] = {}
    guesses = {
        "none": lambda router, hidden: None,
        "last token": lambda router, hidden: last.get(router.experts),
        "early router": EarlyRouter.guess,
    }
    kept = expert_kernel.run_experts, EarlyRouter.guess
    expert_kernel.run_experts, EarlyRouter.guess = (lambda *_: None), guesses[guess]
    EarlyRouter.most = property(lambda router: ahead, lambda router, value: None)
    try:
        asked = 0
        for layer in layers:
            layer.bench = bench
        for layer, hidden, index, weights in calls:
            with torch.inference_mode():
                layer.decode(hidden, index, weights)
            asked, last[layer] = asked + len(layer.on_host.intersection(index.flatten().tolist())), index
    finally:
        expert_kernel.run_experts, EarlyRouter.guess = kept
        del EarlyRouter.most
    steps, copied = len(calls) / len(layers), bench.bytes_brought / bench.geometry.nbytes
    expected, right = bench.ahead
    return {
        "asked": asked / steps, "copied": copied / steps, "in vain": (expected - right) / steps,
        "right": right / max(1, expected),
    }  # fmt: skip


if __name__ == "__main__":
    main()
