"""The policy: a causal language model with its tokenizer, and the LoRA adapter that is all we train.

With `experts.py` the only file that knows PEFT and bitsandbytes.
"""

import functools
import json
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

from grpo_kit import config as settings
from grpo_kit import nemotron_h, tiny

# What an adapter's config may tell us. Everything else in the file is ignored: it came from outside.
LARGEST_WHOLE = 3e9  # parameters; a larger Nemotron-H is quantised as it streams in
ADAPTER_KEYS = (
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "bias",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
)


def load_policy(policy: settings.Policy) -> tuple[Any, Any]:
    """(model, tokenizer) of `policy.model`: the embedded `tiny`, a local folder, or a Hub id.

    The model is in evaluation mode on the first GPU, or on the CPU where there is none; the tokenizer pads left.
    In 4 bit a large Nemotron-H is quantised as it streams in, once, into an NF4 checkpoint (`policy.nf4_folder`).
    Raises FileNotFoundError when neither folder nor Hub has the model; else what `convert` and `checkpoint.load` raise.
    """
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    from transformers.utils import logging as progress

    tokenizer = load_tokenizer(policy)
    if policy.load_in_4bit and _is_streamed(policy):
        return _streamed(policy), tokenizer
    options: dict[str, Any] = {"dtype": getattr(torch, policy.dtype), "revision": policy.revision}
    if torch.cuda.is_available():
        options["device_map"] = {"": 0}
    if policy.load_in_4bit:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, policy.dtype),
        )  # fmt: skip
    bars = progress.is_progress_bar_enabled()
    if policy.model == "tiny":
        torch.set_num_threads(1)  # as fast as two on matrices this small, and ten times faster on a busy machine
        progress.disable_progress_bar()  # it loads in a blink
    model = AutoModelForCausalLM.from_pretrained(source_of(policy), **options).eval()
    if bars:
        progress.enable_progress_bar()
    if model.config.model_type == "nemotron_h":
        nemotron_h.prepare(model)
    if policy.load_in_4bit:
        from grpo_kit import experts

        for module in model.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False  # that path rounds to bf16 and refuses sizes not of 32
        experts.install(model, policy.experts_on_host, host=overflow(policy))
    return model, tokenizer


def _is_streamed(policy: settings.Policy) -> bool:
    """Whether the policy is an NF4 checkpoint already, or a Nemotron-H too large to be loaded whole and then quantised."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from grpo_kit import checkpoint

    if checkpoint.is_nf4(source_of(policy)):
        return True
    published = AutoConfig.from_pretrained(source_of(policy), revision=policy.revision)
    if published.model_type != "nemotron_h":
        return False
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(published).num_parameters() > LARGEST_WHOLE


def _streamed(policy: settings.Policy) -> Any:
    """The model from its NF4 checkpoint, which is made first, shard by shard, where there is none yet."""
    import torch
    from tqdm.auto import tqdm

    from grpo_kit import checkpoint, convert, workspace

    folder = Path(source_of(policy))
    if not checkpoint.is_nf4(folder):
        folder = Path(policy.nf4_folder) if policy.nf4_folder else workspace.nf4_folder(policy.model)
        with tqdm(desc="quantising", unit="shard") as bar:

            def show(number: int, count: int, shard: str) -> None:
                bar.total, bar.n = count, number - 1
                bar.set_postfix_str(shard)

            convert.convert(source_of(policy), folder, policy.dtype, policy.revision, show)
    stored = checkpoint.verify(folder)["dtype"]
    if stored != policy.dtype:
        raise ValueError(
            f"policy.dtype is {policy.dtype} and {folder} was made for {stored}; what stays unquantised has one type. Set policy.dtype={stored}."
        )
    here = "cuda:0" if torch.cuda.is_available() else "cpu"
    return checkpoint.load(folder, here, policy.experts_on_host, host=overflow(policy))


def overflow(policy: settings.Policy) -> Any:
    """The `torch.device` of experts that the first GPU has no room for. Raises ValueError for a GPU that is not there."""
    import torch

    if policy.experts_overflow == "host":
        return torch.device("cpu")
    device, there = torch.device(policy.experts_overflow), torch.cuda.device_count()
    if device.index >= there:
        raise ValueError(
            f"policy.experts_overflow is {policy.experts_overflow}; this machine has {there} GPUs, counted from cuda:0. "
            "Set it to host."
        )
    return device


def load_tokenizer(policy: settings.Policy) -> Any:
    """The tokenizer of `policy.model` alone, fit for training: pads left, thinking tags visible.

    Raises FileNotFoundError when neither folder nor Hub has the model.
    """
    from transformers import AutoTokenizer

    try:
        return usable_tokenizer(
            AutoTokenizer.from_pretrained(source_of(policy), revision=policy.revision, padding_side="left")
        )
    except (OSError, ValueError) as error:  # ValueError: a folder or id that holds no model type known
        raise FileNotFoundError(
            f"policy.model is {policy.model!r}; neither a folder here nor a model the Hub would give holds that name. "
            f"Check the spelling, the network and HF_TOKEN, or give a local folder. ({' '.join(str(error).split())[:200]})"
        ) from None


def base_name(policy: settings.Policy) -> str:
    """The name an adapter's base goes by: the published id, also where the policy is an NF4 checkpoint of it."""
    from grpo_kit import checkpoint

    if checkpoint.is_nf4(source_of(policy)):
        return checkpoint.read_notes(Path(policy.model))["source"]
    return "grpo-kit/tiny" if policy.model == "tiny" else policy.model


def source_of(policy: settings.Policy) -> str:
    """The folder or Hub id that `policy.model` stands for."""
    return str(tiny.FOLDER) if policy.model == "tiny" else policy.model


def add_lora(model: Any, lora: settings.Lora, seed: int) -> Any:
    """`model` with a fresh LoRA (B = 0: it says at first what the base says), in float32, base frozen.

    Raises ValueError when a target module matches nothing, naming it and what does exist.
    """
    from peft import LoraConfig
    from transformers import set_seed

    leaves = {name for name, module in model.named_modules() if not list(module.children())}
    for target in lora.target_modules:
        if not any(name == target or name.endswith(f".{target}") for name in leaves):
            there = sorted({name.rsplit(".", 1)[-1] for name in leaves if name.endswith("_proj")})
            raise ValueError(
                f"lora.target_modules names {target!r}, which matches nothing in this model; it has {', '.join(there)}. Correct the name."
            )
    set_seed(seed)
    return _with_lora(
        model,
        LoraConfig(
            r=lora.r, lora_alpha=lora.lora_alpha, lora_dropout=lora.lora_dropout,
            target_modules=list(lora.target_modules), bias="none", task_type="CAUSAL_LM",
        ),
    )  # fmt: skip


def save_adapter(model: Any, folder: Path, base: str) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`, and nothing else, into `folder`.

    `base` is recorded as the base model's name: PEFT would record this machine's path.
    """
    model.save_pretrained(folder)
    for extra in folder.iterdir():
        if extra.name not in ("adapter_config.json", "adapter_model.safetensors"):
            extra.unlink()
    path = folder / "adapter_config.json"
    saved = json.loads(path.read_text()) | {"base_model_name_or_path": base, "inference_mode": True}
    saved["target_modules"] = sorted(saved["target_modules"])
    path.write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n")


def attach_adapter(model: Any, folder: Path) -> Any:
    """`model` with the saved adapter of `folder`, frozen. Only safetensors are read and only known config keys used.

    Raises ValueError when config and tensors do not fit each other or the model.
    """
    from peft import LoraConfig, set_peft_model_state_dict
    from safetensors.torch import load_file

    saved = json.loads((folder / "adapter_config.json").read_text())
    if saved.get("peft_type") != "LORA" or not isinstance(saved.get("target_modules"), list):
        raise ValueError(
            f"{folder / 'adapter_config.json'} is not a LoRA with a list of target_modules; only such adapters are read. Save it with PEFT's LoRA."
        )
    lora = LoraConfig(
        **{key: saved[key] for key in ADAPTER_KEYS if key in saved}, task_type="CAUSAL_LM", inference_mode=True
    )
    attached = _with_lora(model, lora)
    tensors = load_file(folder / "adapter_model.safetensors")
    try:
        outcome = set_peft_model_state_dict(attached, tensors)
    except RuntimeError as error:  # torch's word for tensors of another shape
        raise ValueError(
            f"The adapter's tensors do not fit its config or this base: {' '.join(str(error).split())[:300]}. Pack the adapter again."
        ) from None
    missing = [key for key in outcome.missing_keys if "lora_" in key]
    if missing or outcome.unexpected_keys:
        first = (missing or outcome.unexpected_keys)[0]
        raise ValueError(
            f"The adapter lacks {len(missing)} tensors its config announces and holds {len(outcome.unexpected_keys)} that "
            f"fit nowhere (first: {first}); every LoRA pair must find its module. Pack the adapter again."
        )
    return attached.eval()


def _with_lora(model: Any, lora: Any) -> Any:
    """PEFT's `get_peft_model`, with Mamba's out_proj allowed.

    PEFT 0.21 refuses it for Mamba models, because a fused kernel would pass the LoRA by; that kernel is switched off
    here (`nemotron_h.route_through_out_proj`), and training stops when a LoRA gets no gradient.
    """
    from peft import get_peft_model
    from peft.tuners import tuners_utils

    refuse = tuners_utils._check_lora_target_modules_mamba
    tuners_utils._check_lora_target_modules_mamba = lambda *args, **kwargs: None
    try:
        return get_peft_model(model, lora)
    finally:
        tuners_utils._check_lora_target_modules_mamba = refuse


def usable_tokenizer(tokenizer: Any) -> Any:
    """`tokenizer` with a padding token, and with thinking tags that stay visible.

    TRL decodes completions without special tokens; a tokenizer that counts `</think>` among those would leave every
    reward blind. The tags are then made ordinary tokens with the same ids.
    """
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    close = tokenizer.encode("</think>", add_special_tokens=False)
    if tokenizer.decode(close, skip_special_tokens=True) == "</think>":
        return tokenizer
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            path = Path(folder, name)
            path.write_text(json.dumps(_with_ordinary_tags(json.loads(path.read_text()))))
        return AutoTokenizer.from_pretrained(folder, padding_side="left")


def _with_ordinary_tags(node: Any) -> Any:
    """The tokenizer's JSON with `special` false on the thinking tags, and the tags in no list of special tokens."""
    tags = ("<think>", "</think>")
    if isinstance(node, list):
        return [_with_ordinary_tags(item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {key: _with_ordinary_tags(value) for key, value in node.items()}
    for key in ("extra_special_tokens", "additional_special_tokens"):
        if isinstance(node.get(key), list):
            node[key] = [name for name in node[key] if name not in tags]
    return node | {"special": False} if node.get("content") in tags else node


def _quiet() -> None:
    """Drop three warnings that are as they should be here and would stand in front of what a user has to read."""
    for name, about in (
        ("transformers.integrations.hub_kernels", "is falling back to its reference PyTorch implementation"),
        ("bitsandbytes.backends.cpu.ops", "Failed to load CPU gemm_4bit_forward"),
    ):
        logging.getLogger(name).addFilter(functools.partial(_is_about_something_else, about))
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


def _is_about_something_else(about: str, record: logging.LogRecord) -> bool:
    return about not in record.getMessage()


_quiet()
