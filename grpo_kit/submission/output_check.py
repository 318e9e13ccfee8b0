"""What a policy says to a few prompts: kept from the trained one, and held against what the submitted zip makes of its base.

The proof of a zip that nothing else gives: on a fresh base its outputs must differ from the base's, and equal the logits
that were taken from the trained policy while it was still in memory.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from grpo_kit.adapters.adapter_config import CONFIG_FILE, read_adapter_config
from grpo_kit.adapters.findings import FATAL, OK, WARNING, Finding, fatal
from grpo_kit.adapters.folder import TENSORS_FILE
from grpo_kit.adapters.names import parse_lora_key, published_name
from grpo_kit.config import Policy
from grpo_kit.policy.chat import render_prompt
from grpo_kit.submission import inspect_zip


def check_submission(path: Path, policy: Policy | None = None, probe: Path | None = None) -> list[Finding]:
    """The doctor's findings, and when none is fatal and the base's weights are at hand, what the outputs show.

    `policy`: the base; without it the one the adapter names. `probe`: the trained policy's logits as `write_probe` left
    them; without it the zip is compared with the base only. Raises FileNotFoundError for a missing file or base.
    """
    found = inspect_zip.inspect_submission(path, policy.model if policy else None)
    if fatal(found):
        return found
    if policy is None and any(finding.code == "base-tiny" for finding in found):
        policy = Policy()
    if policy is None or not _at_hand(policy):
        how = "grpo-kit check FILE.zip -c t4 policy.model=FOLDER loads it where FOLDER holds the base's weights."
        what = "It was not loaded: the base's weights are not at hand. What is said above is what the files show."
        return [*found, Finding("not-loaded", WARNING, what, "", how)]
    return [*found, *_compare(policy, path, probe)]


def _at_hand(policy: Policy) -> bool:
    """Whether the policy can be loaded without a download."""
    from grpo_kit.policy.load import nf4_folder

    if policy.model == "tiny" or any(Path(policy.model).glob("*.safetensors")):
        return True
    return policy.load_in_4bit and (nf4_folder(policy) / "nf4.json").is_file()


def _compare(policy: Policy, path: Path, probe: Path | None) -> list[Finding]:
    import torch

    from grpo_kit.policy.load import load_policy

    model, tokenizer = load_policy(policy)
    asked = _read_probe(probe) if probe and probe.is_file() else _default_probe(tokenizer, policy.enable_thinking)
    base = _last_logits(model, asked)
    submitted = _last_logits(_attach_submission(model, path), asked)
    moved = (submitted - base).abs().max().item()
    # What arithmetic alone would change: an adapter of zeros moves logits by a few units in the last place.
    noise = 10 * torch.finfo(getattr(torch, policy.dtype)).eps * base.abs().max().item()
    said = f"(largest logit change {moved:.3g})"
    if not moved > noise:  # NaN too
        what = f"The outputs do not differ from the base's {said}."
        findings = [
            Finding("outputs-unmoved", FATAL, what, "The score is the base's, or noise.", "Train, and pack again.")
        ]
    else:
        findings = [Finding("outputs-moved", OK, f"The outputs differ from the base model's {said}.")]
    if "trained" not in asked:
        what = "It was not compared with a trained policy."
        return [*findings, Finding("not-compared", WARNING, what, "", "grpo-kit check FILE.zip --run NAME does.")]
    gap = (submitted - asked["trained"]).abs().max().item()
    # Relative to what training changed: the zip must be the trained policy, not something between it and the base.
    if gap <= max(noise, 1e-2 * moved):
        what = f"The outputs equal the trained policy's (largest logit gap {gap:.2g})."
        return [*findings, Finding("outputs-equal", OK, what)]
    what = (
        f"The outputs are not the trained policy's (largest logit gap {gap:.2g}, of {moved:.2g} that training moved)."
    )
    does = "It scores something that was not trained."
    return [
        *findings,
        Finding("outputs-differ", FATAL, what, does, "Pack the run's adapter again with grpo-kit package."),
    ]


def _attach_submission(model: Any, path: Path) -> Any:
    """The model with the pairs of a zip that has no fatal finding, scaled as the scorer scales them.

    Of the config only r and the scale are used; which module has a pair, and of what rank, the tensors say.
    """
    from safetensors.torch import load_file, save_file

    from grpo_kit.adapters.lora import attach_adapter

    with tempfile.TemporaryDirectory(prefix="grpo-kit-") as scratch:
        folder = Path(scratch)
        inspect_zip.unpack_adapter(path, folder)
        config = read_adapter_config(folder / CONFIG_FILE)
        halves: dict[str, dict[str, Any]] = {}
        for key, tensor in load_file(folder / TENSORS_FILE).items():
            if parsed := parse_lora_key(key):
                name = published_name(parsed[0]).replace("backbone.", "model.", 1)
                halves.setdefault(name, {})[parsed[1]] = tensor
        ranks = {name: len(pair["A"]) for name, pair in halves.items() if len(pair["A"]) != config.rank}
        scale = config.scorer_scale
        fields = {
            "peft_type": "LORA", "r": config.rank, "lora_alpha": scale * config.rank, "target_modules": list(halves),
            "rank_pattern": ranks, "alpha_pattern": {name: scale * rank for name, rank in ranks.items()}, "bias": "none",
        }  # fmt: skip
        (folder / CONFIG_FILE).write_text(json.dumps(fields))
        tensors = {
            f"base_model.model.{name}.lora_{half}.weight": t for name, p in halves.items() for half, t in p.items()
        }
        save_file(tensors, folder / TENSORS_FILE)
        return attach_adapter(model, folder)


def write_probe(model: Any, tokenizer: Any, conversations: list[Any], enable_thinking: bool, path: Path) -> None:
    """Keep the trained policy's logits of the first answer token for a few prompts, taken from memory, float32."""
    from safetensors.torch import save_file

    asked = _tokenized(tokenizer, conversations, enable_thinking)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    save_file({**asked, "trained": _last_logits(model, asked)}, aside)
    aside.replace(path)


def _last_logits(model: Any, asked: dict[str, Any]) -> Any:
    """(prompts, vocabulary) logits after the last prompt token; prompts are padded on the left."""
    import torch

    with torch.inference_mode():
        ids, mask = asked["input_ids"].to(model.device), asked["attention_mask"].to(model.device)
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=1).logits[:, -1]
    return logits.float().cpu().clone()


def _tokenized(tokenizer: Any, conversations: list[Any], enable_thinking: bool) -> dict[str, Any]:
    texts = [render_prompt(tokenizer, turns, enable_thinking) for turns in conversations]
    return dict(tokenizer(texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt"))


def _default_probe(tokenizer: Any, enable_thinking: bool) -> dict[str, Any]:
    asked = [[{"role": "user", "content": f"What is {n} + {n + 7}?"}] for n in range(20, 80, 10)]
    return _tokenized(tokenizer, asked, enable_thinking)


def _read_probe(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(path)
