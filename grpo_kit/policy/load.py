"""Load the policy: a causal language model and its tokenizer, unquantised or in 4 bit, from a folder or the Hub."""

import contextlib
import json
import logging
import warnings
from pathlib import Path
from typing import Any

from grpo_kit import config as settings
from grpo_kit.config.schema import require_policy
from grpo_kit.nemotron import base_models, layer_pattern, nf4_layout, patches, tiny
from grpo_kit.policy.tokenizer import prepare_tokenizer
from grpo_kit.runs import activity, processes
from grpo_kit.runs.places import default_nf4_folder

# Of published models: the safetensors files in bf16, and what an NF4 checkpoint of them takes, in GiB. Lightning's
# layer for multi-token prediction is not counted.
PUBLISHED_GIB = {
    base_models.PUBLISHED: (59, 16),
    base_models.LIGHTNING: (59, 16),
    base_models.NANO_4B: (7.4, 3.1),
}
DOWNLOAD_RATE = 100e6  # bytes a second, assumed for the estimate
LARGEST_UNSTREAMED = 3e9  # parameters; a larger Nemotron-H is quantised shard by shard


def load_policy(policy: settings.Policy) -> tuple[Any, Any]:
    """Load the model that acts, without an adapter, and its tokenizer.

    A large Nemotron-H in 4 bit is quantised file by file while it is read. The result is saved once as an NF4
    checkpoint (`policy.nf4_folder`), and later calls read that.

    Args:
        policy: the `policy` section of a configuration; its `model` is `tiny`, a local folder, or an id on the Hub.

    Returns:
        (model, tokenizer). The model is in evaluation mode, on this process's GPU or, without one, on the CPU. The
        tokenizer pads on the left.

    Raises:
        FileNotFoundError: neither the folder nor the Hub has the model.
        ValueError: the model's files do not fit together, or it cannot be loaded in 4 bit.
        TypeError: `policy` is not the section of a configuration.

    Example:
        >>> from grpo_kit import load_config, load_policy
        >>> model, tokenizer = load_policy(load_config("tiny").policy)  # doctest: +SKIP
        >>> model.num_parameters()  # doctest: +SKIP
        534116
    """
    require_policy(policy)
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    from transformers.utils import logging as transformers_logging

    from grpo_kit.policy import generation_loop

    activity.announce(f"loading {policy.model}")
    tokenizer, host = load_tokenizer(policy), overflow_device(policy)
    if policy.load_in_4bit and _needs_nf4_checkpoint(policy):
        return generation_loop.install_loop(_load_from_nf4_checkpoint(policy, host)), tokenizer
    options: dict[str, Any] = {"dtype": getattr(torch, policy.dtype), "revision": policy.revision}
    if torch.cuda.is_available():
        options["device_map"] = {"": processes.process_device()}
    if policy.load_in_4bit:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, policy.dtype),
        )
    bars_enabled = transformers_logging.is_progress_bar_enabled()
    if policy.model == "tiny":
        torch.set_num_threads(1)  # as fast as two on matrices this small, and ten times faster on a busy machine
        transformers_logging.disable_progress_bar()  # it loads in a moment
    if not Path(policy_source(policy)).is_dir():
        from grpo_kit.nemotron.checkpoint_files import remove_incomplete_downloads

        remove_incomplete_downloads()
    model, told = AutoModelForCausalLM.from_pretrained(policy_source(policy), output_loading_info=True, **options)
    if lacking := sorted(told["missing_keys"]):  # transformers would train on random numbers there
        raise ValueError(
            f"The files of {policy.model} lack {lacking[0]}, which its config.json calls for. Download them again, or "
            "name another model."
        )
    model.eval()
    if bars_enabled:
        transformers_logging.enable_progress_bar()
    if model.config.model_type == "nemotron_h":
        patches.prepare_model(model)
    if policy.load_in_4bit:
        from grpo_kit.nemotron import expert_placement, nf4

        nf4.disable_bf16_path(model)
        expert_placement.install_tiered_experts(
            model, policy.experts_on_host, hits=read_routing_counts(policy), host=host
        )
    return generation_loop.install_loop(model), tokenizer


def describe_download(policy: settings.Policy) -> str:
    """What loading the policy would download and for how long, in a sentence; empty if it downloads nothing."""
    from grpo_kit.nemotron import nf4_checkpoint

    source = policy_source(policy)
    if Path(source).is_dir():
        return ""
    if policy.load_in_4bit:
        with contextlib.suppress(FileNotFoundError, ValueError):  # not made yet, or not finished
            nf4_checkpoint.verify_checkpoint(nf4_folder(policy))
            return ""
    if (sizes := PUBLISHED_GIB.get(base_models.recognize_base(source))) is None:
        return f"Loading the policy downloads {source} from the Hub, unless an earlier download is on this machine."
    minutes = sizes[0] * 2**30 / DOWNLOAD_RATE / 60
    kept = f"in 4 bit, {sizes[1]} GiB," if policy.load_in_4bit else "as it is"
    return (
        f"Loading the policy downloads {sizes[0]} GiB from the Hub: about {minutes:.2g} minutes at "
        f"{DOWNLOAD_RATE / 1e6:.0f} MB/s, {2 * minutes:.2g} at half that speed. It is kept {kept} on this machine's "
        "disk, so a later load in this session does not download it again."
    )


def _needs_nf4_checkpoint(policy: settings.Policy) -> bool:
    """Whether the policy is an NF4 checkpoint already, or a Nemotron-H too large to load unquantised."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if nf4_layout.is_nf4_checkpoint(policy_source(policy)):
        return True
    published = AutoConfig.from_pretrained(policy_source(policy), revision=policy.revision)
    if published.model_type != "nemotron_h":
        return False
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(published).num_parameters() > LARGEST_UNSTREAMED


def _load_from_nf4_checkpoint(policy: settings.Policy, host: Any) -> Any:
    """The model from its NF4 checkpoint. The checkpoint is made first, shard by shard, if it does not exist yet."""
    from tqdm.auto import tqdm

    from grpo_kit.nemotron import convert, nf4_checkpoint

    folder = nf4_folder(policy)
    if folder != Path(policy_source(policy)):
        with tqdm(desc="quantising", unit="shard", disable=activity.is_heard()) as bar:

            def show_progress(number: int, count: int, shard: str) -> None:
                activity.announce(f"quantising {shard}, {number} of {count}")
                bar.total, bar.n = count, number - 1
                bar.set_postfix_str(shard)

            processes.broadcast_from_first(
                lambda: convert.convert_to_nf4(
                    policy_source(policy), folder, policy.dtype, policy.revision, show_progress
                )
            )
    stored = nf4_checkpoint.verify_checkpoint(folder)["dtype"]
    if stored != policy.dtype:
        raise ValueError(
            f"policy.dtype is {policy.dtype} and {folder} was made for {stored}; the weights that are not quantised "
            f"have that type. Set policy.dtype={stored}."
        )
    return nf4_checkpoint.load_nf4_model(
        folder, processes.process_device(), policy.experts_on_host, hits=read_routing_counts(policy), host=host
    )


def overflow_device(policy: settings.Policy) -> Any:
    """The `torch.device` for experts that do not fit on the first GPU, from `policy.experts_overflow`.

    Raises:
        ValueError: the GPU does not exist, or several processes run and each has a GPU already.
    """
    import torch

    if policy.experts_overflow == "host":
        return torch.device("cpu")
    if processes.process_count() > 1:
        raise ValueError(
            f"policy.experts_overflow is {policy.experts_overflow}, which uses the second GPU for one process's "
            f"experts; there are {processes.process_count()} processes, each with its own GPU. Set it to host, or "
            "start one process."
        )
    device, gpus = torch.device(policy.experts_overflow), torch.cuda.device_count()
    if device.index >= gpus:
        raise ValueError(
            f"policy.experts_overflow is {policy.experts_overflow}; this machine has {gpus} GPUs, counted from cuda:0. "
            "Set it to host."
        )
    return device


def nf4_folder(policy: settings.Policy) -> Path:
    """The folder of the policy's NF4 checkpoint, whether it exists yet or not; `policy.model` itself if it is one."""
    if nf4_layout.is_nf4_checkpoint(policy_source(policy)):
        return Path(policy_source(policy))
    return Path(policy.nf4_folder) if policy.nf4_folder else default_nf4_folder(policy.model)


def routing_path(policy: settings.Policy) -> Path:
    """The file in which `grpo-kit calibrate` writes this policy's routing counts."""
    return Path(policy.routing) if policy.routing else nf4_folder(policy) / "routing.json"


def read_routing_counts(policy: settings.Policy) -> Any:
    """Read how often real prompts were routed to each expert, as counted by `grpo-kit calibrate`.

    Returns:
        int64 counts of shape (layers, experts); None if nothing was counted.

    Raises:
        FileNotFoundError: `policy.routing` is set and does not exist.
        ValueError: the file does not contain a table of counts.
    """
    import torch

    path = routing_path(policy)
    if not path.is_file():
        if policy.routing:
            raise FileNotFoundError(
                f"policy.routing is {path}, which does not exist. Make it with `grpo-kit calibrate`."
            )
        return None
    try:
        hits = torch.tensor(json.loads(path.read_text(encoding="utf-8"))["hits"])
        if hits.dtype != torch.int64 or hits.ndim != 2 or hits.min() < 0:
            raise ValueError("not a table of counts")
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"{path} is not a table of routing counts ({' '.join(str(error).split())[:80]}). Make it again with "
            "`grpo-kit calibrate`."
        ) from None
    return hits


def load_tokenizer(policy: settings.Policy) -> Any:
    """Load only the tokenizer of a policy, prepared for training: it pads on the left and keeps thinking tags visible.

    Raises:
        FileNotFoundError: neither a local folder nor the Hub has the model.
        ValueError: as for `read_config`.
    """
    from transformers import AutoTokenizer

    with contextlib.suppress(OSError):  # what is not there is reported below
        read_config(policy)
    try:
        return prepare_tokenizer(
            AutoTokenizer.from_pretrained(policy_source(policy), revision=policy.revision, padding_side="left")
        )
    except (OSError, ValueError) as error:  # ValueError: the folder or id has no model type that transformers knows
        raise FileNotFoundError(
            f"policy.model is {policy.model!r}; there is no such folder here, and the Hub did not provide such a "
            "model. Check the spelling, the network and HF_TOKEN, or give a local folder. "
            f"({' '.join(str(error).split())[:200]})"
        ) from None


def read_config(policy: settings.Policy) -> dict[str, Any]:
    """What the config.json of `policy.model` holds. Of some published models it is in the package.

    Raises:
        OSError: neither the package nor a local folder nor the Hub has one.
        ValueError: it is damaged, or that of a Nemotron-H whose layers contradict each other or of a refused relative.
    """
    from transformers import PreTrainedConfig

    source, known = policy_source(policy), base_models.recognize_base(policy.model)
    if known and not Path(source).is_dir():
        return json.loads(base_models.CONFIGS[known].read_text(encoding="utf-8"))
    try:
        fields, _ = PreTrainedConfig.get_config_dict(source, revision=policy.revision)
        is_nemotron_h = layer_pattern.is_nemotron_h(fields)
    except (TypeError, AttributeError):  # transformers takes any JSON value for an object
        raise ValueError(
            f"The config.json of {policy.model} is not a JSON object; it is damaged. Download it again."
        ) from None
    if is_nemotron_h:
        layer_pattern.read_layers(fields, policy.model)
    return fields


def base_model_name(policy: settings.Policy) -> str:
    """The name of an adapter's base model: the published id, also if the policy is an NF4 checkpoint made of it."""
    if nf4_layout.is_nf4_checkpoint(policy_source(policy)):
        from grpo_kit.nemotron import nf4_checkpoint

        return nf4_checkpoint.read_manifest(Path(policy.model))["source"]
    return "grpo-kit/tiny" if policy.model == "tiny" else policy.model


def policy_source(policy: settings.Policy) -> str:
    """The folder or Hub id that `policy.model` stands for."""
    return str(tiny.FOLDER) if policy.model == "tiny" else policy.model


def _hide_expected_warnings() -> None:
    """Hide warnings about things that are intended here, so that users see the warnings that matter."""
    for module, text in (
        ("hub_kernels", "is falling back to its reference PyTorch implementation"),
        (
            "integration_utils",
            'attempting to log a value of "None"',
        ),  # at every step, for figures that a step does not have
    ):
        logger = logging.getLogger(f"transformers.integrations.{module}")
        logger.addFilter(lambda record, text=text: text not in record.getMessage())
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


_hide_expected_warnings()
