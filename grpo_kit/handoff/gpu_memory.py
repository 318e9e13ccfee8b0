"""How an engine that trains and samples on the same GPUs shares their memory, from the plan's own numbers.

Nothing is measured. Each GPU holds its part of the trained weights, which FSDP keeps in float32, and the share that
vLLM reserves for its own copy in 16 bit. vLLM's copy is cut among as few GPUs as possible.
"""

from dataclasses import replace
from typing import NamedTuple

from grpo_kit.handoff.bundle import Bundle
from grpo_kit.planning.machines import GIB, find_device
from grpo_kit.planning.memory import RESERVE, Workload, lora_rows, sampling_rows
from grpo_kit.planning.model_size import Architecture
from grpo_kit.planning.storage import assess_storage

CARD = find_device("80gb")
LARGEST_SHARE = 0.8  # of a card for vLLM; more would leave nothing for CUDA's own buffers and fragmentation


class Placement(NamedTuple):
    """vLLM's tensor parallelism, the share of each card that it reserves, and the sum in words."""

    tensor_parallel: int
    share: float
    words: str


def place_on_gpus(bundle: Bundle) -> Placement | None:
    """Share the memory of `bundle.gpus` cards of 80 GB between training and vLLM; None for another architecture."""
    policy = replace(bundle.config.policy, load_in_4bit=False, dtype="bfloat16")
    try:
        model = Architecture.of(policy)
    except (ValueError, FileNotFoundError):
        return None
    device = replace(CARD, gpus=bundle.gpus, processes=bundle.gpus)
    config, storage = replace(bundle.config, policy=policy), assess_storage(model, policy, device)
    work = Workload(model, config, device, bundle.prompt_tokens, storage)
    weights, card = sum(work.weight_bytes.values()), CARD.gpu * GIB
    sampling = sum(row.nbytes for row in sampling_rows(work) if not row.phases or "decode" in row.phases)
    trained = 2 * weights / bundle.gpus + sum(row.nbytes for row in lora_rows(work)) + RESERVE
    share = min(LARGEST_SHARE, int((1 - trained / card) * 20) / 20)
    counts = [count for count in (1, 2, 4, 8) if bundle.gpus % count == 0 and model.config.n_groups % count == 0]
    fitting = [count for count in counts if weights / count + sampling <= share * card]
    parallel = min(fitting, default=counts[-1])
    words = (
        f"On cards of 80 GB ({CARD.gpu:.1f} GiB), computed and not measured: the trained weights take "
        f"{trained / GIB:.1f} GiB of each; vLLM needs {(weights / parallel + sampling) / GIB:.1f} GiB with tensor "
        f"parallelism {parallel}"
    )
    if fitting:
        return Placement(parallel, share, f"{words} and gets {share:.0%} of the card.")
    words += ". **That does not fit.** More GPUs can share a step with more completions."
    return Placement(parallel, max(share, 0.1), words)
