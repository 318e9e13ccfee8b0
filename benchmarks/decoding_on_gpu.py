"""A decoding step on a GPU: with the kernels and graphs of grpo_kit/nemotron/decoding, with one of them, and without.

The first layers of the 30B at their full widths, random weights in 4 bit, all experts on the GPU, so that nothing is
read over PCIe. The four take turns on the same prompts and draw with the same seed; the first tokens that they draw are
compared. Without a GPU the embedded policy runs, by the one way that a CPU has.

    python benchmarks/decoding_on_gpu.py --record    # a CUDA card with 8 GB
"""

import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import report

LAYERS, ROWS, PROMPT, FEW, MANY = 13, 8, 64, 8, 72  # layers of 52, tokens of two completions
ROUNDS, QUICK_ROUNDS = 5, 1
WAYS = {"both": (True, True), "kernels": (True, False), "graphs": (False, True), "neither": (False, False)}


def main() -> None:
    import torch

    arguments = report.arguments(__doc__)
    gpu = torch.cuda.is_available()
    ways = WAYS if gpu else {"neither": WAYS["neither"]}
    with tempfile.TemporaryDirectory() as scratch:
        model = build_model(Path(scratch), gpu)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    drawn, peaks = {}, {}
    for number in range((QUICK_ROUNDS if arguments.quick else ROUNDS) + 1):  # the first round warms up
        for way in list(ways)[:: 1 if number % 2 == 0 else -1]:
            with using(*ways[way]):
                few, many = (sample(model, tokens) for tokens in (FEW, MANY))
            seconds[way].append((many[0] - few[0]) / (MANY - FEW))
            drawn[way], peaks[way] = many[1], many[2]
    medians = {way: 1e3 * statistics.median(each[1:]) for way, each in seconds.items()}
    rows = [
        {
            "with": way, "a step, ms": f"{medians[way]:.2f}", "tokens a second": f"{1e3 * ROWS / medians[way]:,.0f}",
            "peak, MiB": f"{peaks[way] / 2**20:,.0f}" if gpu else "no GPU",
            "first tokens equal": f"{(drawn[way][:, :4] == drawn['neither'][:, :4]).float().mean().item():.2f}",
        }
        for way in ways
    ]  # fmt: skip
    figures: dict[str, Any] = {"layers": len(model.model.layers), "rows": ROWS}
    figures |= {f"{way}_ms": round(value, 3) for way, value in medians.items()}
    if not gpu:
        figures["owed"] = "all figures of a GPU"
    report.finish("decoding_on_gpu", rows, figures, arguments.record)


def build_model(folder: Path, gpu: bool) -> Any:
    import random_nemotron
    import torch

    from grpo_kit.nemotron import base_models, tiny

    fields = json.loads((base_models.NANO if gpu else tiny.FOLDER / "config.json").read_text())
    if gpu:
        pattern = fields["hybrid_override_pattern"][:LAYERS]
        fields |= {"hybrid_override_pattern": pattern, "num_hidden_layers": LAYERS}
    (folder / "config.json").write_text(json.dumps(fields))
    torch.manual_seed(0)
    return random_nemotron.tiered(folder, torch.float16 if gpu else torch.float32, "cuda" if gpu else "cpu", 0.0).eval()


@contextlib.contextmanager
def using(with_kernels: bool, with_graphs: bool) -> Iterator[None]:
    """Leave out the kernels or the graphs of decoding."""
    from grpo_kit.nemotron.decoding import graph, kernels

    kept = kernels.is_usable, graph.is_usable
    if not with_kernels:
        kernels.is_usable = lambda *_: False
    if not with_graphs:
        graph.is_usable = lambda *_: False
    try:
        yield
    finally:
        kernels.is_usable, graph.is_usable = kept


def sample(model: Any, tokens: int) -> tuple[float, Any, int]:
    """(seconds, the drawn tokens (rows, tokens), bytes of the GPU at their most) of completions of `tokens` tokens."""
    import torch

    torch.manual_seed(1)
    ids = torch.randint(16, model.config.vocab_size, (ROWS, PROMPT), device=model.device)
    settings = {"min_new_tokens": tokens, "max_new_tokens": tokens, "do_sample": True, "pad_token_id": 0}
    gpu = model.device.type == "cuda"
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    with torch.inference_mode():
        drawn = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[:, PROMPT:].cpu()
    return time.perf_counter() - started, drawn, torch.cuda.max_memory_reserved() if gpu else 0


if __name__ == "__main__":
    main()
