"""The doctor: what is wrong with a submission, what the challenge's scorer would do with it, and the remedy.

The scorer unpacks the zip, takes the folder of the first `adapter_config.json` it finds (`**/adapter_config.json`), and
has vLLM load that folder as a LoRA; a failure is told as "Evaluation metric raised an unexpected error", two hours later.
Nothing here loads a model or writes a file, and a zip of any size takes a few MiB of memory.
"""

from pathlib import Path, PurePosixPath
from typing import Any

from grpo_kit.nemotron import base_models
from grpo_kit.submission import config_check, safetensors_reader, tensor_check, zip_reader
from grpo_kit.submission.findings import FATAL, OK, WARNING, Finding, Refused, listed, shown

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")
LARGEST_CONFIG = 1 << 20  # bytes; a real one has about 1,000
LARGEST_SEEN = 3_200_000_000  # bytes of a zip; one of 3,095 MB was accepted


def inspect_submission(path: Path, base: str | None = None) -> list[Finding]:
    """Findings about the zip at `path`, fatal ones first.

    `base`: the model it is to fit (any name `expected.modules` takes); without it, the one the adapter names, else the
    challenge's. Raises FileNotFoundError when there is no such file or base, ValueError for a folder of another model.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file; grpo-kit package writes a zip. Check the path.")
    if base is not None:
        base_models.lora_modules(base)
    try:
        with zip_reader.opened(path) as opened:
            findings = _inside(opened, path, base)
    except Refused as refused:
        findings = [refused.finding]
    order = (FATAL, WARNING, OK)
    return sorted(dict.fromkeys(findings), key=lambda finding: order.index(finding.severity))


def is_fatal(findings: list[Finding]) -> bool:
    return any(finding.severity == FATAL for finding in findings)


def _inside(opened: zip_reader.Archive, path: Path, base: str | None) -> list[Finding]:
    findings = _whole(opened, path)
    folder = _folder(opened, findings)
    if folder is None:
        return findings
    try:
        raw = opened.read(str(folder / CONFIG), LARGEST_CONFIG)
        config, about = config_check.read_config(raw)
        which, named = config_check.examine_base(config, base)
        findings += [*about, *config_check.examine_config(config), *named]
    except Refused as refused:
        findings.append(refused.finding)
        config, which = {}, base or base_models.PUBLISHED
    tensors = str(folder / TENSORS)
    if tensors in opened.members:
        findings += _tensors(opened, tensors, config, which)
    return findings


def _tensors(opened: zip_reader.Archive, member: str, config: dict[str, Any], base: str) -> list[Finding]:
    findings: list[Finding] = []
    with opened.stream(member) as file:
        try:
            entries = safetensors_reader.read_header(file, opened.members[member].file_size)
            halves, about = tensor_check.examine_tensors(entries, config, base_models.lora_modules(base))
            findings += about
            values = {e.name: value for e, value in safetensors_reader.read_values(file, entries) if value is not None}
            findings += tensor_check.examine_values(values, halves)
        except Refused as refused:
            findings = [finding for finding in findings if finding.severity != OK]
            findings.append(refused.finding)
    return findings


def _folder(opened: zip_reader.Archive, findings: list[Finding]) -> PurePosixPath | None:
    """The folder whose adapter the scorer would load; what is odd about it goes into `findings`."""
    hidden = [name for name in opened.members if any(part.startswith(".") for part in PurePosixPath(name).parts[:-1])]
    configs = [n for n in opened.members if PurePosixPath(n).name == CONFIG and n not in hidden]
    if len(configs) != 1:
        code, what = "two-configs", f"{len(configs)} files are named {CONFIG}: {listed(configs)}."
        does, remedy = "It takes the first it comes upon, whichever that is.", "Pack one adapter, without checkpoints."
        if not configs:
            near = [n for n in opened.members if PurePosixPath(n).name.lower().endswith((CONFIG, ".zip"))]
            code, what = "no-config", f"No {CONFIG} is in the zip" + (f" ({listed(near)} is none)." if near else ".")
            does, remedy = (
                "It finds no adapter: the submission fails.",
                "Pack with grpo-kit package: two files at the root.",
            )
        findings.append(Finding(code, FATAL, what, does, remedy))
        return None
    folder = PurePosixPath(configs[0]).parent
    if str(folder) != ".":
        what = f"The adapter lies in the folder {shown(str(folder))}, not at the root."
        findings.append(
            Finding("nested", WARNING, what, "It looks into folders too and loads it.", "Pack at the root.")
        )
    beside = {PurePosixPath(name).name for name in opened.members if PurePosixPath(name).parent == folder}
    if TENSORS not in beside:
        pickled = sorted(beside & {"adapter_model.bin", "adapter_model.pt"})
        if pickled:
            findings.append(
                Finding(
                    "pickle", FATAL, f"The weights are {pickled[0]}, a pickle, which can run code when it is read; it was not.",
                    "It would read it with torch.load.", f"Save as {TENSORS} (PEFT: safe_serialization=True).",
                )
            )  # fmt: skip
        else:
            elsewhere = [n for n in opened.members if n.endswith((".safetensors", ".bin"))]
            what = f"No {TENSORS} lies beside {CONFIG}" + (f"; {listed(elsewhere)} is not read." if elsewhere else ".")
            findings.append(
                Finding(
                    "no-tensors", FATAL, what, "It finds no weights: the submission fails.", "Pack both at the root."
                )
            )
    ignored = [n for n in opened.members if n not in (str(folder / CONFIG), str(folder / TENSORS))]
    for name in ignored:  # whoever unpacks the zip unpacks them too
        opened.verify(name)
    if pickles := [n for n in ignored if n.lower().endswith(PICKLES) and TENSORS in beside]:
        what = f"{listed(pickles)} may be pickles; they were not opened."
        findings.append(Finding("pickle-ignored", WARNING, what, "It reads the safetensors only.", "Leave them out."))
    if others := [n for n in ignored if n not in pickles]:
        what = f"{len(others)} more files: {listed(others, 6)}."
        does = "It ignores them; tokenizer and template are the base's, whatever the zip holds."
        findings.append(
            Finding("ignored-files", WARNING, what, does, "Leave them out; train with the base's template.")
        )
    return folder


def _whole(opened: zip_reader.Archive, path: Path) -> list[Finding]:
    size, findings = path.stat().st_size, []
    if size > LARGEST_SEEN:
        what = f"The zip has {size / 1e6:,.0f} MB; the largest that is known to have been accepted had 3,095."
        findings.append(Finding("size", WARNING, what, "Unknown.", "Save in bf16 or fp16, or at a lower rank."))
    name = "" if path.name == "submission.zip" else "Submit it under the name submission.zip."
    what = f"{len(opened.members)} files, {size / 2**20:,.2f} MiB; nothing in it is unsafe to unpack."
    findings.append(Finding("archive", OK, what, "", name))
    return findings
