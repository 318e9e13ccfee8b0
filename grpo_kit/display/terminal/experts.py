"""The experts of the policy on the command line: their load before and after training, and where the coldest go."""

from typing import Any

from rich import box
from rich.table import Table

from grpo_kit.display.console import out
from grpo_kit.runs.run import Run


def print_expert_load(run: Run) -> None:
    """The load of the experts before and after training, layer by layer; a sentence where it was not measured."""
    from grpo_kit.planning import expert_load  # it imports torch, and this file is light

    path = expert_load.find_load_file(run)
    if path is None:
        out.print("No load of experts was measured: the policy has none, or vLLM sampled (evaluation.use_vllm=true).")
        return
    load = expert_load.read_load(path)
    columns = ("layer", "fullest over mean", "entropy", "unused", "choice changed", "stayed", "hot on the slower tier")
    table = Table(title="load of the experts, before and after", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, justify="right")
    hot = expert_load.find_hot(load)
    sides = (expert_load.describe_layers(load[key]) for key in ("hits_before", "hits"))
    for number, old, new, changed, stayed in zip(load["layers"], *sides, load["changed"], load["overlap"], strict=True):
        table.add_row(
            f"{number}",
            f"{old.max_violation + 1:.2f} {new.max_violation + 1:.2f}",
            f"{old.entropy:.3f} {new.entropy:.3f}",
            f"{old.unused} {new.unused}",
            f"{changed:.1%}",
            f"{stayed:.1%}",
            ", ".join(str(expert) for layer, expert in hot if layer == number),
        )
    out.print(table)


def print_placement(result: dict[str, Any]) -> None:
    """The result of `calibrate`: how many token rows were routed, and what placing the coldest experts saves."""
    out.print(
        f"Counted {result['rows']:,} token rows of {result['prompts']} prompts and their completions.\n"
        f"With {result['experts_on_host']:.1%} of the experts in host memory, {result['host_share_last']:.1%} of the "
        f"rows need them when each layer's last experts are there, and {result['host_share_coldest']:.1%} when the "
        "coldest are there. From now on, the coldest experts go there, in each run that has not counted by itself."
    )
