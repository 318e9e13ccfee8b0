"""Nemotron-3-Nano-30B in real 4 bit within the memory of one T4: load, sample, train; beside two alternatives.

The weights are random, in the real shapes, drawn and quantised matrix by matrix, so nothing is downloaded. They route
almost evenly, which is the worst case for experts in host memory. PyTorch's allocator is capped at 14.43 GiB, and
nothing is used that a T4 lacks, whatever the card: no bf16, no Triton, no grouped_mm, no flash attention. Each
contender (tiered: the kit's own; parametrised and offloaded: see random_nemotron.py) runs in its own process. One that
does not fit is tried again without the cap, to learn how much it needs.

    python benchmarks/nemotron_16gb.py --scale full --record    # any CUDA card of 16 GB or more
    python benchmarks/nemotron_16gb.py --scale tiny             # the same on a CPU, in the embedded policy's sizes

Share of roofline: the time that a phase's bytes and products would take one after the other, at the bandwidths measured
in the same run, divided by the time it took. For decoding, the bytes are those of the experts that were chosen.
Bars: decoding 5 times as fast as the best alternative that fits and at half of its roofline, `plan`'s peak within 10 %,
host tier at most 4.5 GiB, process at most 11 GiB.
"""

import contextlib
import gc
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
import report

CAP, RSS = 14.43, 11.0  # GiB that PyTorch's allocator, as on a T4 with its context, and the process may take
CONTENDERS = ("tiered", "parametrised", "offloaded")
STEP = [
    "grpo.max_steps=1", "grpo.num_generations=8", "grpo.per_device_train_batch_size=2",
    "grpo.gradient_accumulation_steps=4", "grpo.gradient_checkpointing=true", "grpo.mask_truncated_completions=false",
    "grpo.reward_funcs=[here:spread]", "grpo.reward_weights=[1.0]",
]  # fmt: skip


class Scale(NamedTuple):
    """`rows` prompts of `prompt` tokens get `drawn` tokens each; `few` with the alternatives."""

    preset: str
    settings: list[str]
    rows: int
    prompt: int
    drawn: int
    few: int


SCALES = {
    "full": Scale("t4", [], 8, 256, 128, 16),
    "tiny": Scale("tiny", ["policy.load_in_4bit=true", "policy.experts_on_host=0.25"], 8, 96, 16, 8),
}


def main() -> None:
    arguments = report.arguments(__doc__, scale=tuple(SCALES), contender=("all", *CONTENDERS))
    scale = "tiny" if arguments.quick else arguments.scale
    if arguments.contender != "all":
        print(json.dumps(compete(arguments.contender, SCALES[scale])))
        return
    results = {}
    for contender in CONTENDERS:
        with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as alone:
            results[contender] = alone.submit(compete, contender, SCALES[scale]).result()
    speeds = {name: each["tokens_per_s"] for name, each in results.items() if each["fits"]}
    ours = speeds.pop("tiered")
    best = max(speeds, key=speeds.__getitem__, default=None)
    figures = {"scale": scale, **results["tiered"]["figures"], "best_alternative": best}
    figures |= {"times_best_alternative": round(ours / speeds[best], 2) if best else None, "bar_times": 5}
    figures["alternatives_that_do_not_fit"] = [name for name, each in results.items() if not each["fits"]]
    report.finish(
        "nemotron_16gb", [row for each in results.values() for row in each["rows"]], figures, arguments.record
    )


def compete(contender: str, scale: Scale) -> dict[str, Any]:
    """One contender, in this process: {rows of the table, whether it fits, tokens a second in decoding, figures}."""
    import torch

    gpu = torch.cuda.is_available()
    if scale.preset == "t4" and not gpu:
        sys.exit("--scale full needs a CUDA GPU, and there is none here; --scale tiny runs on a CPU.")
    torch.backends.cuda.enable_flash_sdp(False)
    if contender == "tiered":
        return tiered(scale)
    failure = ""
    for gib in (CAP, None) if gpu else (None,):
        limit(gib)
        try:
            return alternative(contender, scale, not gpu or gib is not None, failure)
        except torch.OutOfMemoryError as error:
            request = " ".join(str(error).split(". ")[1:2])
            failure = f"does not fit: {torch.cuda.memory_allocated() / 2**30:.2f} taken. {request}"
        gc.collect()
        torch.cuda.empty_cache()
    return {"rows": [line(contender, "load", None) | {"peak VRAM, GiB": failure}], "fits": False, "tokens_per_s": None}


# ours


def tiered(scale: Scale) -> dict[str, Any]:
    import t4_audit
    import torch

    from grpo_kit.nemotron.placement.tiered_layers import find_tiered_layers
    from grpo_kit.planning import step_time
    from grpo_kit.planning.model_size import Architecture

    limit(CAP)
    chosen, folder, device = settings(scale)
    speed = step_time.measure_bandwidths(device)
    planned = plan(chosen, scale, speed)
    model, rows = load("tiered", chosen, folder, device, planned)
    layers = list(find_tiered_layers(model).values())
    bench, tier = layers[0].bench, sum(layer.rows[e].nbytes for layer in layers for e in layer.on_host)
    ids, gpu = prompts(model, scale), device != "cpu"
    architecture = Architecture.of(chosen.policy)
    stack = (layers[0].num_experts, layers[0].geometry.intermediate, layers[0].geometry.hidden)

    with t4_audit.audit(stack):  # not timed: counts, warms up, and fails on what a T4 lacks
        near, far = count(model, scale, lambda: draw(model, ids, scale.drawn))
    before = draw(model, ids, 1)
    marks = [bench.bytes_brought]
    fresh()
    first = min(before, draw(model, ids, 1))  # what follows is told apart by it, so that it must not have waited
    marks.append(bench.bytes_brought)
    rows.append(line("tiered", f"prefill {scale.rows} x {scale.prompt}", first, ids.numel(), marks[1] - marks[0]))
    decoding = draw(model, ids, scale.drawn) - first
    marks.append(bench.bytes_brought)
    tokens, pcie = scale.rows * (scale.drawn - 1), marks[2] - marks[1] - (marks[1] - marks[0])
    resident = (scale.drawn - 1) * step_time.resident_token_bytes(architecture, planned, scale.rows)
    reached = ((resident + near) / speed.vram_gb_s + far / speed.pcie_gb_s) / 1e9 / decoding
    rows.append(line("tiered", f"decode {scale.rows} x {scale.drawn}", decoding, tokens, pcie, reached))
    seconds, trained = grpo_step(chosen, scale, model)
    share, pcie, length = sum(planned.seconds) / seconds, bench.bytes_brought - marks[2], scale.prompt + scale.drawn
    rows.append(line("tiered", f"GRPO step {scale.rows} x {length}", seconds, scale.rows * length, pcie, share))
    figures = {
        "decode_tokens_per_s": round(tokens / decoding, 1), "decode_share_of_roofline": round(reached, 3),
        "bar_share": 0.5, **peaks(rows, planned), "bar_planned_off": 0.1, "host_tier_gib": round(tier / 2**30, 6),
        "bar_host_tier_gib": 5.0, "rss_gib": round(rss(), 2), "bar_rss_gib": RSS, "lora_pairs_trained": trained,
        "vram_gb_s": round(speed.vram_gb_s, 1), "pcie_gb_s": round(speed.pcie_gb_s, 1) if gpu else None,
        "matmul_tflops": round(speed.matmul_tflops, 3), "copied_ahead": bench.ahead[0],
        "copied_in_vain": bench.ahead[0] - bench.ahead[1],
    }  # fmt: skip
    if not torch.cuda.is_available():
        figures["owed"] = "everything of the full size, and all figures of a GPU"
    return {"rows": rows, "fits": True, "tokens_per_s": tokens / decoding, "figures": figures}


def peaks(rows: list[dict[str, Any]], planned: Any) -> dict[str, Any]:
    """The card's fullest moment beside what `plan` says, both with the CUDA context; two rows more for the table."""
    import torch

    figures: dict[str, Any] = dict.fromkeys(("peak_gib", "planned_gib", "planned_off"))
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        context = total - free - torch.cuda.memory_reserved()
        peak = max(float(row["peak VRAM, GiB"]) for row in rows) + context / 2**30
        expected = planned.needs["GPU"].nbytes / 2**30
        figures = {
            "peak_gib": round(peak, 2),
            "planned_gib": round(expected, 2),
            "planned_off": round(abs(expected / peak - 1), 3),
        }
    for phase, key in (("peak, measured", "peak_gib"), ("peak, by plan", "planned_gib")):
        shown = "no GPU" if figures[key] is None else f"{figures[key]:.2f}"
        rows.append(line("tiered", phase, None) | {"peak VRAM, GiB": shown})
    return figures


def count(model: Any, scale: Scale, work: Callable[[], Any]) -> tuple[int, int]:
    """(bytes on the GPU, bytes on the host) of the experts that decoding steps choose during `work`, once a step."""
    from grpo_kit.nemotron.placement.tiered_layers import find_tiered_layers

    nbytes = [0, 0]

    def add_choice(layer: Any, inputs: tuple[Any, ...]) -> None:
        if len(inputs[1]) <= scale.rows:  # (tokens, k) of one step; prompts are longer
            chosen = set(inputs[1].flatten().tolist())
            for where, experts in enumerate((chosen - layer.on_host, chosen & layer.on_host)):
                nbytes[where] += len(experts) * layer.geometry.nbytes

    hooks = [layer.register_forward_pre_hook(add_choice) for layer in find_tiered_layers(model).values()]
    work()
    for hook in hooks:
        hook.remove()
    return nbytes[0], nbytes[1]


def grpo_step(chosen: Any, scale: Scale, model: Any) -> tuple[float, str]:
    """(seconds of one optimiser step through TRL's trainer, how many LoRA pairs it changed)."""
    from transformers import TrainerCallback
    from trl.kernels import chunked_logprob

    from grpo_kit import config
    from grpo_kit.policy.load import load_tokenizer
    from grpo_kit.runs.files import write_text
    from grpo_kit.runs.run import find_run
    from grpo_kit.training import train

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            fresh()  # what tries the longest step comes before
            self.started = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.seconds = time.perf_counter() - self.started

    def spread(completions: list[Any], completion_ids: list[list[int]], **batch: Any) -> list[float]:
        return [sum(ids) % 97 / 97 for ids in completion_ids]  # unequal, so that there is something to learn

    chunked_logprob._TRITON_AVAILABLE = False  # on any card, as on a T4
    tokenizer, clock = load_tokenizer(config.Policy()), Clock()
    question = [{"role": "user", "content": ""}]
    empty = len(tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=True)["input_ids"])
    question[0]["content"] = "x" * (scale.prompt - empty)  # a byte a token
    run = find_run("step", tempfile.mkdtemp())
    run.data_file("train").parent.mkdir(parents=True)
    write_text(run.data_file("train"), json.dumps({"id": "1", "prompt": question, "answer": ""}) + "\n")
    write_text(run.manifest, json.dumps({"rows": {"train": 1}, "dropped": {}, "read": 1, "sha256": {}}))
    with contextlib.redirect_stdout(sys.stderr):
        trainer = train.make_trainer(chosen, run, [spread], policy=(model, tokenizer))
        trainer.add_callback(clock)
        trainer.train()
    moved = [bool(value.any()) for name, value in trainer.model.named_parameters() if ".lora_B." in name]
    return clock.seconds, f"{sum(moved)} of {len(moved)}"


# the others


def alternative(contender: str, scale: Scale, capped: bool, failure: str) -> dict[str, Any]:
    """Load an alternative and sample from it. `failure` tells how it did not fit under the cap, if it did not."""
    chosen, folder, device = settings(scale)
    model, rows = load(contender, chosen, folder, device, plan(chosen, scale))
    ids = prompts(model, scale)
    draw(model, ids, 2)  # warms up
    fresh()
    first = min(draw(model, ids, 1) for _ in range(2))
    rows.append(line(contender, f"prefill {scale.rows} x {scale.prompt}", first, ids.numel()))
    decoding, tokens = draw(model, ids, scale.few) - first, scale.rows * (scale.few - 1)
    rows.append(line(contender, f"decode {scale.rows} x {scale.few}", decoding, tokens))
    if not capped:
        rows[0]["phase"] += f", without the cap ({failure})"
    return {"rows": rows, "fits": capped and rss() <= RSS, "tokens_per_s": tokens / decoding}


# what all of them need


def settings(scale: Scale) -> tuple[Any, Path, str]:
    """(configuration, a folder with the config.json, the device)."""
    import torch

    from grpo_kit import config
    from grpo_kit.nemotron import base_models, tiny

    chosen = config.load_config([scale.preset], [*STEP, *scale.settings, f"grpo.max_completion_length={scale.drawn}"])
    folder = Path(tempfile.mkdtemp())
    published = tiny.FOLDER / "config.json" if scale.preset == "tiny" else base_models.NANO
    (folder / "config.json").write_text(published.read_text())
    return chosen, folder, "cuda:0" if torch.cuda.is_available() else "cpu"


def plan(chosen: Any, scale: Scale, speed: Any = None) -> Any:
    import torch

    from grpo_kit.planning import machines
    from grpo_kit.planning.plan import plan as make_plan

    gpu, memory = torch.cuda.is_available(), CAP + machines.CONTEXT
    where = machines.Device("a T4's memory", memory, triton=False) if gpu else machines.find_device("cpu")
    return make_plan(chosen, where, scale.prompt, speed, search=False)


def load(contender: str, chosen: Any, folder: Path, device: str, planned: Any) -> tuple[Any, list[dict[str, Any]]]:
    """(the model, with experts on the host as planned for a GPU or configured for a CPU; the table's row)."""
    import random_nemotron
    import torch

    torch.manual_seed(0)
    share = chosen.policy.experts_on_host if device == "cpu" else planned.share_off_gpu
    fresh()
    build, dtype = getattr(random_nemotron, contender), getattr(torch, chosen.policy.dtype)
    seconds, model = timed(lambda: build(folder, dtype, device, share))
    return model, [line(contender, "load", seconds)]


def prompts(model: Any, scale: Scale) -> Any:
    import torch

    return torch.randint(16, model.config.vocab_size, (scale.rows, scale.prompt), device=model.device)


def draw(model: Any, ids: Any, tokens: int) -> float:
    """Seconds to read the prompts and draw `tokens` tokens for every row."""
    import torch

    torch.manual_seed(1)
    settings = {"min_new_tokens": tokens, "max_new_tokens": tokens, "do_sample": True, "pad_token_id": 0}
    seconds, out = timed(lambda: model.generate(ids, attention_mask=torch.ones_like(ids), **settings))
    assert out.shape == (len(ids), ids.shape[1] + tokens)
    return seconds


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    import torch

    started = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started, result


def limit(gib: float | None) -> None:
    """Cap PyTorch's allocator, None for the whole card."""
    import torch

    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory / 2**30
        torch.cuda.set_per_process_memory_fraction(min(1.0, (gib or total) / total))


def line(
    contender: str, phase: str, seconds: float | None, tokens: int | None = None, pcie: int | None = None,
    share: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """A row of the table: the GPU's peak since the last row, the process's peak since it started."""
    import torch

    gpu = torch.cuda.is_available()
    row = {
        "contender": contender,
        "phase": phase,
        "seconds": "" if seconds is None else f"{seconds:.3f}",
        "tokens a second": f"{tokens / seconds:.1f}" if tokens and seconds else "",
        "peak VRAM, GiB": f"{torch.cuda.max_memory_allocated() / 2**30:.2f}" if gpu else "no GPU",
        "RSS, GiB": f"{rss():.2f}",
        "over PCIe, GiB": "" if pcie is None else f"{pcie / 2**30:.4g}",
        "share of roofline": "" if share is None else f"{share:.1%}",
    }
    fresh()
    return row


def fresh() -> None:
    """Start measuring the GPU's peak again."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def rss() -> float:
    """The largest memory that this process has used so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
