"""Check of a submission's outputs: the logits of a few prompts, compared with the base's and the trained policy's.

Only this proves a zip: loaded onto a fresh base, its outputs must equal the logits that were saved while the trained
policy was still in memory. Without the pairs that the scorer drops, they must still differ from the base's.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from grpo_kit.adapters import scorer
from grpo_kit.adapters.adapter_config import CONFIG_FILE, TENSORS_FILE, read_adapter_config
from grpo_kit.adapters.findings import FATAL, OK, WARNING, Finding, fatal
from grpo_kit.adapters.safetensors_files import read_header
from grpo_kit.config import Policy
from grpo_kit.config.arguments import as_path
from grpo_kit.config.schema import require_policy
from grpo_kit.nemotron import tiny
from grpo_kit.policy.chat import render_prompt
from grpo_kit.runs.files import new_file
from grpo_kit.runs.installation import require_no_old_torchao
from grpo_kit.submission import inspect_zip, tensor_names


def check_submission(path: str | Path, policy: Policy | None = None, probe: str | Path | None = None) -> list[Finding]:
    """Check a submission: its files, and when none of that is fatal and the base's weights are here, its outputs.

    Args:
        path: the zip.
        policy: the base, such as `config.policy`; None for the one that the adapter names.
        probe: the file of the trained policy's logits, `run.result.probe`; without it the zip is compared with the base
            only.

    Returns:
        the findings. Each has a `severity`, the sentence `what` and a `remedy`. Do not submit a zip with a finding
        whose severity is "fatal".

    Raises:
        FileNotFoundError: the zip or the base is missing.
        TypeError: an argument has another type.

    Example:
        >>> from grpo_kit import check, open_run
        >>> config, run = open_run(name="first")
        >>> findings = check("submission/submission.zip", config.policy, run.result.probe)  # doctest: +SKIP
        >>> [finding.what for finding in findings if finding.severity == "fatal"]  # doctest: +SKIP
        []
    """
    path, probe = as_path("path", path), as_path("probe", probe) if probe else None
    if policy is not None:
        require_policy(policy)
    findings = inspect_zip.inspect_submission(path, policy.model if policy else None)
    if fatal(findings):
        return findings
    if policy is None and any(finding.code == "base-tiny" for finding in findings):
        policy = _named_policy(path)
    if any(finding.code == "embeddings" for finding in findings):
        what = "The adapter was not loaded: it has a LoRA on the embeddings, so only its files were checked."
        return [*findings, Finding("not-loaded", WARNING, what, "", "Train other modules to have outputs compared.")]
    if policy is None or not _has_weights(policy):
        what = "The adapter was not loaded: the base's weights are not on this machine, so only its files were checked."
        remedy = "`grpo-kit check FILE.zip -c t4 policy.model=FOLDER` loads it where FOLDER holds the base's weights."
        return [*findings, Finding("not-loaded", WARNING, what, "", remedy)]
    return [*findings, *_compare_outputs(policy, path, probe)]


def _named_policy(path: Path) -> Policy:
    """The embedded policy that the zip names as its base."""
    with tempfile.TemporaryDirectory(prefix="grpo-kit-") as scratch:
        inspect_zip.unpack_adapter(path, Path(scratch))
        name = read_adapter_config(Path(scratch) / CONFIG_FILE).fields["base_model_name_or_path"]
    return Policy(model=name.removeprefix("grpo-kit/"))


def _has_weights(policy: Policy) -> bool:
    """Whether the policy can be loaded without a download."""
    from grpo_kit.policy.model_source import find_nf4

    if policy.model in tiny.FOLDERS or any(Path(policy.model).glob("*.safetensors")):
        return True
    return find_nf4(policy) is not None


def _compare_outputs(policy: Policy, path: Path, probe: Path | None) -> list[Finding]:
    import torch

    from grpo_kit.policy.load import load_policy

    require_no_old_torchao()
    model, tokenizer = load_policy(policy)
    prompts = _read_probe(probe) if probe and probe.is_file() else _default_prompts(tokenizer, policy.enable_thinking)
    base = _last_logits(model, prompts)
    submitted = _whole_and_scored(_attach_submission(model, path), prompts)
    whole, scored = submitted["trained"], submitted.get("scored", submitted["trained"])
    change = (scored - base).abs().max().item()
    # What rounding alone would change: an adapter of zeros changes logits by a few units in the last place.
    noise = 10 * torch.finfo(getattr(torch, policy.dtype)).eps * base.abs().max().item()
    if not change > noise:  # NaN too
        what = f"The outputs do not differ from the base's (largest logit change {change:.3g})."
        does = "The score is the base's, or noise."
        findings = [Finding("outputs-unmoved", FATAL, what, does, "Train, and pack again.")]
    else:
        what = f"The outputs differ from the base model's (largest logit change {change:.3g})."
        findings = [Finding("outputs-moved", OK, what)]
    if (lost := (whole - scored).abs().max().item()) > 0:
        what = f"Without the LoRA on shared experts the outputs change (largest logit gap {lost:.3g}; with it they "
        what += f"differ from the base's by {(whole - base).abs().max().item():.3g})."
        does = f"{scorer.ENGINE} answers without it. Whether Kaggle patched its copy is unknown."
        remedy = f"Train {', '.join(scorer.USED)} instead; these count in every copy."
        findings.append(Finding("outputs-dropped", WARNING, what, does, remedy))
    if "trained" not in prompts:
        what = "The outputs were not compared with a trained policy's."
        remedy = "`grpo-kit check FILE.zip --run NAME` compares them."
        return [*findings, Finding("not-compared", WARNING, what, "", remedy)]
    # The policy as it was trained, unless the zip leaves out what the scorer drops, and as the scorer answers.
    pairs = [(whole, prompts["trained"])] if "scored" in submitted or "scored" not in prompts else []
    if "scored" in prompts:
        pairs.append((scored, prompts["scored"]))
    for ours, trained in pairs:
        gap, change = (ours - trained).abs().max().item(), (trained - base).abs().max().item()
        # The gap must be small compared with what training changed, or the zip is not quite the trained policy.
        if not gap <= max(noise, 1e-2 * change):
            what = f"The outputs are not the trained policy's (largest logit gap {gap:.2g}; training changed "
            what += f"{change:.2g})."
            does, remedy = "vLLM scores something that was not trained.", "Pack the run's adapter again with"
            return [*findings, Finding("outputs-differ", FATAL, what, does, f"{remedy} grpo-kit package.")]
    what = f"The outputs equal the trained policy's (largest logit gap {gap:.2g})."
    return [*findings, Finding("outputs-equal", OK, what)]


def copy_as_scored(folder: Path, target: Path) -> str:
    """Copy an adapter with its dropped pairs set to zero, so that a measurement answers as the scorer does.

    Args:
        folder: an adapter's two files.
        target: an empty folder.

    Returns:
        The sentence of `scorer.describe_use`; "" if the scorer uses everything: then nothing is written.
    """
    from safetensors.torch import load_file, save_file

    entries = read_header(folder / TENSORS_FILE)
    used, total = scorer.count_used({key: [entry.shape] for key, entry in entries.items()})
    if used == total:
        return ""
    tensors = load_file(folder / TENSORS_FILE)
    for key, tensor in tensors.items():
        if scorer.is_dropped(key) and ".lora_B" in key:
            tensor.zero_()
    save_file(tensors, target / TENSORS_FILE)
    shutil.copyfile(folder / CONFIG_FILE, target / CONFIG_FILE)
    return scorer.describe_use(used, total)


def _whole_and_scored(model: Any, prompts: dict[str, Any]) -> dict[str, Any]:
    """The logits of a model with a LoRA: `trained`, and `scored` without the pairs that the scorer drops, if any."""
    import torch

    logits = {"trained": _last_logits(model, prompts)}
    dropped = [value for name, value in model.named_parameters() if ".lora_B." in name and scorer.is_dropped(name)]
    if dropped:
        kept = [value.detach().clone() for value in dropped]
        with torch.no_grad():
            for value in dropped:
                value.zero_()
            logits["scored"] = _last_logits(model, prompts)
            for value, old in zip(dropped, kept, strict=True):
                value.copy_(old)
    return logits


def _attach_submission(model: Any, path: Path) -> Any:
    """The model with the pairs of a zip that has no fatal finding, scaled as the scorer scales them.

    Only r and the scale come from the config; the tensors say which modules have a pair, and of what rank.
    """
    from safetensors.torch import load_file, save_file

    from grpo_kit.adapters.lora import attach_adapter

    with tempfile.TemporaryDirectory(prefix="grpo-kit-") as scratch:
        folder = Path(scratch)
        inspect_zip.unpack_adapter(path, folder)
        config = read_adapter_config(folder / CONFIG_FILE)
        halves: dict[str, dict[str, Any]] = {}
        for key, tensor in load_file(folder / TENSORS_FILE).items():
            if place := tensor_names.scorer_place(key):
                halves.setdefault(place[0].replace("backbone.", "model.", 1), {})[place[1]] = tensor
        ranks = {name: len(pair["A"]) for name, pair in halves.items() if len(pair["A"]) != config.rank}
        scale = config.scorer_scale
        fields = {
            "peft_type": "LORA",
            "bias": "none",
            "r": config.rank,
            "lora_alpha": scale * config.rank,
            "target_modules": list(halves),
            "rank_pattern": ranks,
            "alpha_pattern": {name: scale * rank for name, rank in ranks.items()},
        }
        (folder / CONFIG_FILE).write_text(json.dumps(fields))
        tensors = {
            f"base_model.model.{name}.lora_{half}.weight": t for name, p in halves.items() for half, t in p.items()
        }
        save_file(tensors, folder / TENSORS_FILE)
        return attach_adapter(model, folder)


def write_probe(model: Any, tokenizer: Any, conversations: list[Any], enable_thinking: bool, path: Path) -> None:
    """Save the trained policy's logits of the first answer token for a few prompts, to compare a zip with them.

    Args:
        model: the trained policy, in memory.
        tokenizer: with the chat template.
        conversations: the prompts, as lists of messages.
        enable_thinking: passed to the chat template.
        path: the file to write: token ids, mask, and float32 logits (prompts, vocabulary), `trained` and, where the
            scorer drops a part of the adapter, `scored` without it.
    """
    from safetensors.torch import save_file

    prompts = _tokenize(tokenizer, conversations, enable_thinking)
    with new_file(path) as aside:
        save_file({**prompts, **_whole_and_scored(model, prompts)}, aside)


def _last_logits(model: Any, prompts: dict[str, Any]) -> Any:
    """(prompts, vocabulary) logits after the last prompt token; prompts are padded on the left."""
    import torch

    with torch.inference_mode():
        ids, mask = prompts["input_ids"].to(model.device), prompts["attention_mask"].to(model.device)
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=1).logits[:, -1]
    return logits.float().cpu().clone()


def _tokenize(tokenizer: Any, conversations: list[Any], enable_thinking: bool) -> dict[str, Any]:
    texts = [render_prompt(tokenizer, turns, enable_thinking) for turns in conversations]
    return dict(tokenizer(texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt"))


def _default_prompts(tokenizer: Any, enable_thinking: bool) -> dict[str, Any]:
    questions = [[{"role": "user", "content": f"What is {n} + {n + 7}?"}] for n in range(20, 80, 10)]
    return _tokenize(tokenizer, questions, enable_thinking)


def _read_probe(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(path)
