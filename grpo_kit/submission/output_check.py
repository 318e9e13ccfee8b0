"""What a policy says to a few prompts: kept from the trained one, and held against what the submitted zip makes of its base.

The proof of a zip that nothing else gives: on a fresh base its outputs must differ from the base's, and equal the logits
that were taken from the trained policy while it was still in memory.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from grpo_kit.config import Policy
from grpo_kit.nemotron import base_models
from grpo_kit.policy.chat import render_prompt
from grpo_kit.submission import config_check, inspect_zip, zip_reader
from grpo_kit.submission.findings import FATAL, OK, WARNING, Finding
from grpo_kit.submission.inspect_zip import CONFIG, TENSORS


def check_submission(path: Path, policy: Policy | None = None, probe: Path | None = None) -> list[Finding]:
    """The doctor's findings, and when none is fatal and the base's weights are at hand, what the outputs show.

    `policy`: the base; without it the one the adapter names. `probe`: the trained policy's logits as `write_probe` left
    them; without it the zip is compared with the base only. Raises FileNotFoundError for a missing file or base.
    """
    found = inspect_zip.inspect_submission(path, policy.model if policy else None)
    if inspect_zip.is_fatal(found):
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
    submitted = _last_logits(_with_submitted(model, path), asked)
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


def _with_submitted(model: Any, path: Path) -> Any:
    """`model` with the pairs of a zip that the doctor has passed, scaled as the scorer scales them.

    Of the config no more is used than r and scale: which module has a pair, and of what rank, the tensors say.
    """
    from safetensors.torch import load_file, save_file

    from grpo_kit.adapters.lora import attach_adapter

    with tempfile.TemporaryDirectory() as aside:
        folder = Path(aside)
        unpack_adapter(path, folder)
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        saved = {base_models.module_of(key): value for key, value in load_file(folder / TENSORS).items()}
        pairs = {place[0]: (value, saved[place[0], "B"]) for place, value in saved.items() if place and place[1] == "A"}
        r, scale = config["r"], config_check.scale(config)
        ours = {name.replace("backbone.", "model.", 1): pair for name, pair in pairs.items()}
        ranks = {name: a.shape[0] for name, (a, _) in ours.items() if a.shape[0] != r}
        neat = {
            "peft_type": "LORA", "r": r, "lora_alpha": scale * r, "target_modules": list(ours), "bias": "none",
            "rank_pattern": ranks, "alpha_pattern": {name: scale * rank for name, rank in ranks.items()},
        }  # fmt: skip
        (folder / CONFIG).write_text(json.dumps(neat))
        halves = {f"base_model.model.{n}.lora_{h}.weight": t for n, p in ours.items() for h, t in zip("AB", p)}
        save_file(halves, folder / TENSORS)
        return attach_adapter(model, folder)


def unpack_adapter(path: Path, folder: Path) -> None:
    """Put the two files of a zip that the doctor has passed into `folder`."""
    with zip_reader.opened(path) as opened:
        for member in opened.members:
            if (name := Path(member).name) in (CONFIG, TENSORS):
                with opened.stream(member) as packed, (folder / name).open("wb") as file:
                    shutil.copyfileobj(packed, file, 1 << 20)


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
