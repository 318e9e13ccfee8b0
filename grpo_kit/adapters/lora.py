"""A LoRA on a model: added for training, saved, and attached from files of any origin.

The only file that imports PEFT.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from grpo_kit.adapters import scorer
from grpo_kit.adapters.adapter_config import CONFIG_FILE, TENSORS_FILE
from grpo_kit.adapters.folder import AdapterFolder
from grpo_kit.adapters.layouts import Pair, read_pairs
from grpo_kit.adapters.names import published_name
from grpo_kit.adapters.targets import resolve_targets
from grpo_kit.config import Lora
from grpo_kit.nemotron.expert_lora import ExpertMatrix
from grpo_kit.nemotron.placement.tiered_layers import count_packed_parameters, list_expert_matrices, open_for_lora
from grpo_kit.runs.installation import require_no_old_torchao

# That import silences warnings that the next imports would print.
# isort: split

from peft import LoraConfig, get_peft_model
from peft.tuners import tuners_utils
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from transformers import set_seed

# Fields of an adapter's config that are passed to PEFT. All others are ignored, because the file may be anybody's.
USED_FIELDS = (
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "bias",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
)

TRAINED = "default"  # PEFT's name of the adapter that is trained; TRL calls its frozen copy `ref`


def add_lora(model: Any, lora: Lora, seed: int) -> Any:
    """Put a fresh LoRA in float32 on a model and freeze the base. B is zero, so the model answers as before.

    Args:
        model: the base, as `policy.load` loads it.
        lora: rank, alpha, dropout and target modules; `up_proj` and `down_proj` mean the routed experts of a 4-bit
            policy too, with one pair for each expert's matrix. `all-linear` does not.
        seed: of A's random values.

    Returns:
        PEFT's model.

    Raises:
        ValueError: a target module does not exist in the model, or dropout is set for routed experts.
    """
    targets = _resolve_targets(model, lora.target_modules)
    if open_for_lora(model, targets) and lora.lora_dropout:
        raise ValueError(
            f"lora.lora_dropout is {lora.lora_dropout} and lora.target_modules names routed experts, whose backward "
            "pass computes them again and would drop other values. Set lora.lora_dropout=0."
        )
    set_seed(seed)
    return _with_lora(
        model,
        LoraConfig(
            r=lora.r,
            lora_alpha=lora.lora_alpha,
            lora_dropout=lora.lora_dropout,
            target_modules=targets,
            bias="none",
            task_type="CAUSAL_LM",
        ),
    )


def _resolve_targets(model: Any, targets: Sequence[str]) -> list[str]:
    output, modules = model.get_output_embeddings(), dict(model.named_modules())
    linears = [name for name, module in modules.items() if isinstance(module, nn.Linear) and module is not output]
    leaves = [name for name, module in modules.items() if name not in linears and not list(module.children())]
    experts = list_expert_matrices(model)
    # transformers' own experts cannot have a LoRA, but their published names must not be meant either.
    stacked = [name.replace(".experts.", ".experts.0.") for name, value in model.named_parameters() if value.ndim == 3]
    return resolve_targets(targets, linears, experts, [*leaves, *stacked])


def describe_lora(model: Any) -> str:
    """One line on the share of layers, linear modules and parameters that a model's LoRA touches.

    Args:
        model: from `add_lora`.
    """
    modules = dict(model.get_base_model().named_modules())
    adapted = [name for name, module in modules.items() if isinstance(module, BaseTunerLayer)]
    inside = tuple(f"{name}." for name in adapted)  # the base layer, A and B of each
    plain = [n for n, m in modules.items() if isinstance(m, nn.Linear) and not n.startswith(inside)]
    layers, touched = (
        {match[0] for name in names if (match := re.match(r".*?\.\d+(?=\.)", name))} for names in (modules, adapted)
    )
    trained, total = model.get_nb_trainable_parameters()
    total += count_packed_parameters(model) - trained
    return (
        f"LoRA touches {len(touched)} of {len(layers)} layers and {len(adapted)} of {len(adapted) + len(plain)} linear "
        f"modules; it trains {trained:,} parameters beside the model's {total:,} ({trained / total:.2%})"
    )


def describe_dropped(model: Any) -> str:
    """One sentence on the share of a model's LoRA that the challenge's scorer would drop; "" if it would drop nothing.

    Args:
        model: from `add_lora`.
    """
    shapes: dict[str, list[tuple[int, ...]]] = {}
    for name, value in model.named_parameters():
        if ".lora_" in name:
            shapes.setdefault(name.partition(".lora_")[0], []).append(tuple(value.shape))
    used, total = scorer.count_used(shapes)
    if used == total:
        return ""
    share = scorer.percent(total - used, total)
    return (
        f"The challenge's scorer ({scorer.ENGINE}) drops a LoRA on shared experts, {share} of the parameters that this "
        f"run trains; for the challenge set lora.target_modules=[{','.join(scorer.USED)}]."
    )


def save_adapter(model: Any, folder: Path, base: str) -> None:
    """Save a model's adapter as `adapter_config.json` and `adapter_model.safetensors`, and nothing else.

    Args:
        model: from `add_lora`.
        folder: where to write.
        base: recorded as the base's name, because PEFT would record this machine's path.
    """
    model.save_pretrained(folder, selected_adapters=[TRAINED])  # and not the copy that a trainer compares it with
    for extra in folder.iterdir():
        if extra.name not in (CONFIG_FILE, TENSORS_FILE):
            extra.unlink()
    path = folder / CONFIG_FILE
    fields = json.loads(path.read_text()) | {"base_model_name_or_path": base, "inference_mode": True}
    fields["target_modules"] = sorted(fields["target_modules"])
    path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")


def drop_copies(model: Any) -> None:
    """Remove every adapter but the trained one, such as the frozen copy that a trainer of TRL makes.

    Args:
        model: from `add_lora`.
    """
    for name in [name for name in model.peft_config if name != TRAINED]:
        model.delete_adapter(name)


def attach_adapter(model: Any, folder: Path) -> Any:
    """Put a saved adapter on a model, frozen.

    Args:
        model: the base, as `policy.load` loads it.
        folder: holds the adapter's two files, from anywhere.

    Returns:
        The model with the adapter, in evaluation mode.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the adapter is not a plain LoRA with a list of target modules, or does not fit the model.
    """
    adapter = AdapterFolder(folder, "attach")
    fields = adapter.config.fields
    lora = LoraConfig(
        **{key: fields[key] for key in USED_FIELDS if key in fields}, task_type="CAUSAL_LM", inference_mode=True
    )
    open_for_lora(model, lora.target_modules)
    pairs, _ = read_pairs(adapter, None)
    # transformers keeps all experts of a layer in one weight. PEFT could put a LoRA on that too, and would compute the
    # update of all experts again in every forward pass, so their pairs are added to the weight.
    stacks = {published_name(name): value for name, value in model.named_parameters() if value.ndim == 3}
    left = {name: pair for name, pair in pairs.items() if not _add_to_expert(stacks, pair)}
    if not left:
        return model.eval()
    if len(left) < len(pairs):
        lora.target_modules = {published_name(name).removeprefix("backbone.") for name in left}
    attached = _with_lora(model, lora)
    tensors = {}
    for name, pair in left.items():
        for half, tensor in zip("AB", pair.load()):
            tensors[f"base_model.model.{name}.lora_{half}.weight"] = tensor
    _load(attached, tensors)
    return attached.eval()


def _add_to_expert(stacks: dict[str, torch.Tensor], pair: Pair) -> bool:
    """Add a routed expert's pair to the weight of all experts of its layer; False if there is no such weight."""
    match = re.fullmatch(r"(.+\.experts)\.(\d+)\.(up_proj|down_proj)", published_name(pair.name))
    weight = stacks.get(f"{match[1]}.{match[3]}") if match else None
    if weight is None or int(match[2]) >= len(weight):
        return False
    if pair.shape != weight.shape[1:]:
        raise ValueError(f"{pair.name} has a LoRA that does not fit its matrix. Pack the adapter again.")
    a, b = pair.load()
    with torch.no_grad():
        weight[int(match[2])] += ((b.float() @ a.float()) * pair.scale).to(weight)
    return True


def load_adapter_values(attached: Any, folder: Path) -> None:
    """Load the values of a saved adapter into a model that has its LoRA already, in the type that the model's LoRA has.

    Raises:
        ValueError: the tensors do not fit the model's LoRA.
    """
    _load(attached, load_file(folder / TENSORS_FILE))


def _load(attached: Any, tensors: dict[str, torch.Tensor]) -> None:
    # PEFT's own loader would stack the experts' pairs for transformers' fused experts, which a 4-bit policy does not
    # have.
    prefix = attached.get_base_model().base_model_prefix
    tensors = {
        re.sub(r"(lora_[AB])\.weight$", rf"\1.{TRAINED}.weight", name.replace(".backbone.", f".{prefix}.", 1)): value
        for name, value in tensors.items()
    }
    try:
        outcome = attached.load_state_dict(tensors, strict=False)
    except RuntimeError as error:  # raised by torch for tensors of another shape
        raise ValueError(
            f"The adapter's tensors do not fit its config or this base: {' '.join(str(error).split())[:300]}. Pack "
            "the adapter again."
        ) from None
    missing = [key for key in outcome.missing_keys if re.search(rf"lora_[AB]\.{TRAINED}\b", key)]
    if missing or outcome.unexpected_keys:
        first = (missing or outcome.unexpected_keys)[0]
        raise ValueError(
            f"The adapter lacks {len(missing)} tensors that its config announces, and {len(outcome.unexpected_keys)} "
            f"of its tensors have no module in this base (first: {first}). Every LoRA pair needs a module. Pack the "
            "adapter again."
        )


@contextlib.contextmanager
def allow_mamba_targets() -> Iterator[None]:
    """Let PEFT put a LoRA on Mamba's out_proj within the block.

    PEFT 0.21 refuses it, because a fused kernel would skip the LoRA. `nemotron.patches` switches that kernel off, and
    training stops when a LoRA gets no gradient.
    """
    refuse = tuners_utils._check_lora_target_modules_mamba
    tuners_utils._check_lora_target_modules_mamba = lambda *args, **kwargs: None
    try:
        yield
    finally:
        tuners_utils._check_lora_target_modules_mamba = refuse


def _with_lora(model: Any, lora: Any) -> Any:
    require_no_old_torchao()
    with allow_mamba_targets():
        wrapped = get_peft_model(model, lora)
    if any(isinstance(module, ExpertMatrix) for module in model.modules()):
        wrapped.base_model.merge_adapter = wrapped.base_model.merge_and_unload = _refuse_to_merge
    return wrapped


def _refuse_to_merge(*args: Any, **kwargs: Any) -> None:
    raise ValueError(
        "The LoRA is on routed experts in 4 bit, which cannot hold a merged update. Save the adapter, and write merged "
        "16-bit weights with `grpo-kit handoff --to trl --merge`."
    )
