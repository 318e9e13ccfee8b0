"""The adapter as `submission.zip`, and the proof that the zip holds the policy that was trained.

The challenge's scorer loads `adapter_config.json` and `adapter_model.safetensors` from the zip. `check` does what it
would do, on a fresh base model: it fails unless every LoRA pair is alive, the outputs differ from the base's, and they
equal the logits that were taken from the trained policy while it was still in memory.
"""

import json
import shutil
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

from grpo_kit import workspace
from grpo_kit.config import RunConfig, to_yaml

MEMBERS = ("adapter_config.json", "adapter_model.safetensors")
LARGEST_CONFIG = 1 << 20  # bytes; a real one has about 1,000
LARGEST_ADAPTER = 8 << 30  # bytes unpacked; all-linear rank 32 in float32 has 3.3 GiB


def package(config: RunConfig, run: workspace.Run, out: Path | None = None) -> Path:
    """Write the run's adapter as a zip with exactly the two files the scorer reads, at its root; returns its path.

    The same adapter gives the same bytes. Raises FileNotFoundError when the run is not trained.
    """
    from grpo_kit.policy import base_name

    run.need("train", "grpo-kit train")
    started, out = time.monotonic(), out or run.submission
    there = out.absolute().as_posix() in run.stages().get("package", {}).get("wrote", {})
    if there and run.is_done("package", {}, [run.adapter], config.run.force, derived=True):
        return out
    adapter = json.loads((run.adapter / MEMBERS[0]).read_text())
    adapter["base_model_name_or_path"] = base_name(config.policy)
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f".{out.name}.partial")
    try:
        with zipfile.ZipFile(aside, "w") as archive, (run.adapter / MEMBERS[1]).open("rb") as tensors:
            archive.writestr(_member(MEMBERS[0]), json.dumps(adapter, indent=2, sort_keys=True) + "\n")
            with archive.open(_member(MEMBERS[1]), "w", force_zip64=True) as target:
                shutil.copyfileobj(tensors, target, 1 << 20)
        aside.replace(out)
    finally:
        aside.unlink(missing_ok=True)
    run.note("package", {}, [run.adapter], [out], time.monotonic() - started, to_yaml(config))
    return out


def unpack(path: Path, folder: Path) -> None:
    """Unpack a submission into `folder`; the zip is not trusted.

    Raises FileNotFoundError when there is none, ValueError for anything but the two members at the root, of sane size.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; grpo-kit package writes one. Check the path.")
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(archive.namelist())
            if names != sorted(MEMBERS):
                raise ValueError(
                    f"{path} holds {', '.join(names[:6]) or 'nothing'}; the scorer wants exactly {' and '.join(MEMBERS)} at the root. Pack it with grpo-kit package."
                )
            for name, largest in zip(MEMBERS, (LARGEST_CONFIG, LARGEST_ADAPTER)):
                size = archive.getinfo(name).file_size
                if size > largest:
                    raise ValueError(
                        f"{name} in {path} unpacks to {size} bytes; at most {largest} are sane. Pack the adapter again."
                    )
                with archive.open(name) as member, (folder / name).open("wb") as target:
                    shutil.copyfileobj(member, target, 1 << 20)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path} is not a zip that can be read ({error}). Pack the adapter again.") from None


def check(config: RunConfig, path: Path, probe: Path | None = None) -> list[tuple[bool, str]]:
    """Load the zip on a fresh base model and compare; returns (passed, finding) for each thing looked at.

    `probe`: the trained policy's logits as `write_probe` left them; without it the zip is compared with the base only.
    Raises ValueError or FileNotFoundError when the zip cannot be loaded at all.
    """
    import torch

    from grpo_kit.adapter import attach_adapter
    from grpo_kit.policy import load_policy

    findings = []
    with tempfile.TemporaryDirectory() as aside:
        unpack(path, Path(aside))
        findings.append((True, f"holds exactly {' and '.join(MEMBERS)}"))
        model, tokenizer = load_policy(config.policy)
        asked = (
            _read_probe(probe)
            if probe and probe.is_file()
            else _default_probe(tokenizer, config.policy.enable_thinking)
        )
        base = _last_logits(model, asked)
        model = attach_adapter(model, Path(aside))
    pairs = lora_pairs(model)
    dead = [
        name
        for name, (a, b) in pairs.items()
        if not (a.any() and b.any() and torch.isfinite(a).all() and torch.isfinite(b).all())
    ]
    findings.append(
        (
            not dead and bool(pairs),
            f"{len(pairs) - len(dead)} of {len(pairs)} LoRA pairs are non-zero and finite"
            + (f"; not so: {', '.join(dead[:3])}" if dead else ""),
        )
    )
    submitted = _last_logits(model, asked)
    moved = (submitted - base).abs().max().item()
    # What arithmetic alone would change: an adapter of zeros moves logits by a few units in the last place.
    noise = 10 * torch.finfo(getattr(torch, config.policy.dtype)).eps * base.abs().max().item()
    findings.append((moved > noise, f"outputs differ from the base model's (largest logit change {moved:.3g})"))
    if "trained" in asked:
        gap = (submitted - asked["trained"]).abs().max().item()
        # Relative to what training changed: the zip must be the trained policy, not something between it and the base.
        findings.append(
            (gap <= max(noise, 1e-2 * moved), f"outputs equal the trained policy's (largest logit gap {gap:.2g})")
        )
    return findings


def write_probe(model: Any, tokenizer: Any, conversations: list[Any], enable_thinking: bool, path: Path) -> None:
    """Keep the trained policy's logits of the first answer token for a few prompts, taken from memory, float32."""
    from safetensors.torch import save_file

    asked = _tokenized(tokenizer, conversations, enable_thinking)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    save_file({**asked, "trained": _last_logits(model, asked)}, aside)
    aside.replace(path)


def lora_pairs(model: Any) -> dict[str, tuple[Any, Any]]:
    """{module name: (A of shape (r, in), B of shape (out, r))} of every LoRA in the model."""
    halves = {
        name: value.detach() for name, value in model.named_parameters() if ".lora_A." in name or ".lora_B." in name
    }
    return {
        name.split(".lora_A.")[0]: (value, halves[name.replace(".lora_A.", ".lora_B.")])
        for name, value in halves.items()
        if ".lora_A." in name
    }


def _last_logits(model: Any, asked: dict[str, Any]) -> Any:
    """(prompts, vocabulary) logits after the last prompt token; prompts are padded on the left."""
    import torch

    with torch.inference_mode():
        ids, mask = asked["input_ids"].to(model.device), asked["attention_mask"].to(model.device)
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=1).logits[:, -1]
    return logits.float().cpu().clone()


def _tokenized(tokenizer: Any, conversations: list[Any], enable_thinking: bool) -> dict[str, Any]:
    texts = [
        tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, enable_thinking=enable_thinking
        )
        for turns in conversations
    ]
    return dict(tokenizer(texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt"))


def _default_probe(tokenizer: Any, enable_thinking: bool) -> dict[str, Any]:
    asked = [[{"role": "user", "content": f"What is {n} + {n + 7}?"}] for n in range(20, 80, 10)]
    return _tokenized(tokenizer, asked, enable_thinking)


def _read_probe(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(path)


def _member(name: str) -> zipfile.ZipInfo:
    """A zip entry without this moment's time or this machine's flags: the same adapter gives the same bytes."""
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = 0o644 << 16
    return info
