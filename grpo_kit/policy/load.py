"""Load the policy: a causal language model and its tokenizer, unquantised or in 4 bit, from a folder or the Hub."""

import logging
import re
import warnings
from pathlib import Path
from typing import Any

from grpo_kit import config as settings
from grpo_kit.config.schema import require_policy
from grpo_kit.nemotron import patches, tiny
from grpo_kit.policy.model_source import build_config, find_nf4, missing_model, policy_source
from grpo_kit.policy.nf4_source import needs_nf4_checkpoint, prepare_checkpoint
from grpo_kit.policy.routing_counts import read_routing_counts
from grpo_kit.policy.tokenizer import prepare_tokenizer
from grpo_kit.runs import activity, processes


def load_policy(policy: settings.Policy) -> tuple[Any, Any]:
    """Load the model that acts, without an adapter, and its tokenizer.

    A large Nemotron-H in 4 bit is quantised file by file while it is read. The result is saved once as an NF4
    checkpoint (`policy.nf4_folder`), and later calls read that.

    Args:
        policy: the `policy` section of a configuration; its `model` is `tiny`, `tiny-environments`, `tiny-office`,
            a local folder, or an id on the Hub.

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
    from transformers import BitsAndBytesConfig
    from transformers.utils import logging as transformers_logging

    from grpo_kit.nemotron.placement.placing import install_tiered_experts
    from grpo_kit.nemotron.placement.relief import with_relief
    from grpo_kit.policy import generation_loop

    activity.announce(f"loading {policy.model}")
    tokenizer, host = load_tokenizer(policy), overflow_device(policy)
    if policy.load_in_4bit and needs_nf4_checkpoint(policy):
        from grpo_kit.nemotron.nf4_checkpoint import load_nf4_model

        folder, device, hits = prepare_checkpoint(policy), processes.process_device(), read_routing_counts(policy)
        activity.announce(f"loading {folder}")
        model = load_nf4_model(folder, device, policy.experts_on_host, hits=hits, host=host)
        return generation_loop.install_loop(model), tokenizer
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
    if policy.model in tiny.FOLDERS:
        torch.set_num_threads(1)  # as fast as two on matrices this small, and ten times faster on a busy machine
        transformers_logging.disable_progress_bar()  # it loads in a moment
    if not Path(policy_source(policy)).is_dir():
        from grpo_kit.nemotron.checkpoint_files import remove_incomplete_downloads

        remove_incomplete_downloads()
    no_experts = torch.nn.Module()  # none can move yet
    try:
        model = with_relief(no_experts, lambda: _load_published(policy, options), "loading")
    finally:
        if bars_enabled:
            transformers_logging.enable_progress_bar()
    model.eval()
    if model.config.model_type == "nemotron_h":
        patches.prepare_model(model)
    if policy.load_in_4bit:
        from grpo_kit.nemotron import nf4

        nf4.disable_bf16_path(model)
        install_tiered_experts(model, policy.experts_on_host, hits=read_routing_counts(policy), host=host)
    return generation_loop.install_loop(model), tokenizer


def _load_published(policy: settings.Policy, options: dict[str, Any]) -> Any:
    """The model from its safetensors files, by transformers, which would fill in random numbers for what they lack."""
    from transformers import AutoModelForCausalLM

    from grpo_kit.nemotron.placement.relief import is_out_of_memory

    again, config, failure = "Download them again, or name another model.", build_config(policy), _FailureReport()
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(failure)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            policy_source(policy),
            config=config,
            use_safetensors=True,  # any other file of weights is a pickle, which may run code
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    except OSError as error:
        if not Path(policy_source(policy)).is_dir():
            raise missing_model(policy, error) from None
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise FileNotFoundError(f"The safetensors files of {policy.model} cannot be read ({reason}). {again}") from None
    except Exception as error:  # what the libraries raise for a damaged file or index is of any kind
        if is_out_of_memory(error) or isinstance(error, ImportError):  # a library is missing, not a file
            raise
        reason = failure.cause or " ".join(str(error).split())[:200]
        raise ValueError(f"The files of {policy.model} are damaged ({reason}). {again}") from None
    finally:
        logger.removeFilter(failure)
    if lacking := sorted(report["missing_keys"]):
        raise ValueError(f"The files of {policy.model} lack {lacking[0]}, which its config.json calls for. {again}")
    mismatched = sorted(report["mismatched_keys"])
    if policy.load_in_4bit:  # transformers does not compare the shapes of what it quantises
        from grpo_kit.nemotron.nf4 import is_4bit_linear

        for name, module in model.named_modules():
            shape = (module.out_features, module.in_features) if is_4bit_linear(module) else None
            if shape and tuple(module.weight.quant_state.shape) != shape:
                mismatched.append((f"{name}.weight", module.weight.quant_state.shape, shape))
    if mismatched:
        name, stored, expected = mismatched[0]
        raise ValueError(
            f"{name} in the files of {policy.model} is {tuple(stored)}; its config.json calls for {tuple(expected)}. "
            f"{again}"
        )
    return model


class _FailureReport(logging.Filter):
    """Holds back the report, with a traceback, that transformers prints when tensors do not fit together.

    `cause` is what it says about the first of them.
    """

    cause = ""

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if "Traceback" in text and (found := re.search(r"^\w+: (.+)$", text, re.MULTILINE)):
            name = re.search(r"destined for ([\w.]+\w)", text)
            self.cause = (f"{name[1]}: " if name else "") + found[1].strip()[:200]
        return not self.cause


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


def load_tokenizer(policy: settings.Policy) -> Any:
    """Load only the tokenizer of a policy, prepared for training: it pads on the left and keeps thinking tags visible.

    Raises:
        FileNotFoundError: as for `read_config`, or the Hub does not provide the tokenizer.
        ValueError: as for `build_config`, or a file of the tokenizer or its chat template is damaged.
    """
    from transformers import AutoTokenizer

    config, source = build_config(policy), str(find_nf4(policy) or policy_source(policy))  # an NF4 checkpoint has one
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, config=config, revision=policy.revision, padding_side="left")
        tokenizer = prepare_tokenizer(tokenizer)
        if tokenizer.chat_template:
            tokenizer.apply_chat_template([{"role": "user", "content": "1 + 1?"}], tokenize=False)
    except Exception as error:  # a damaged file and a template raise whatever comes
        if isinstance(error, OSError) and not Path(source).is_dir():
            raise missing_model(policy, error) from None
        raise ValueError(
            f"The tokenizer of {source} cannot be used ({' '.join(str(error).split())[:200]}). Download its "
            "tokenizer.json, tokenizer_config.json and chat_template.jinja again, or name another model."
        ) from None
    return tokenizer


def _hide_expected_warnings() -> None:
    """Hide warnings about things that are intended here, so that users see the warnings that matter."""
    for module, text in (
        ("hub_kernels", "is falling back to its reference PyTorch implementation"),
        ("integration_utils", 'attempting to log a value of "None"'),  # for figures that a step does not have
    ):
        logger = logging.getLogger(f"transformers.integrations.{module}")
        logger.addFilter(lambda record, text=text: text not in record.getMessage())
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


_hide_expected_warnings()
