"""Check of a submission: what is wrong with the zip, what the challenge's scorer would do with it, and the remedy.

The scorer unpacks the zip, takes the folder of the first `adapter_config.json` that it finds
(`**/adapter_config.json`), and has vLLM load that folder as a LoRA. It reports a failure as "Evaluation metric raised
an unexpected error", two hours later. No model is loaded here. The two files are unpacked into a temporary folder, and
no more than a MiB of tensors is in memory.
"""

import re
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from grpo_kit.adapters.adapter_config import (
    CONFIG_FILE,
    LARGEST_CONFIG,
    TENSORS_FILE,
    parse_adapter_config,
    read_adapter_config,
)
from grpo_kit.adapters.findings import FATAL, OK, WARNING, Finding, Refused, printable, printable_list
from grpo_kit.adapters.safetensors_files import read_header
from grpo_kit.nemotron import base_models
from grpo_kit.submission import tensor_check, value_check, zip_reader

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")
LARGEST_ACCEPTED = 3_200_000_000  # bytes of a zip; one of 3,095 MB was accepted
# Where the published weights lie under other names: Kaggle's mount, a Hub cache.
PLACES = re.compile(
    r"metric/nemotron-3-nano-30b-a3b-bf16/transformers/default|models--nvidia--nvidia-nemotron-3-nano-30b-a3b-bf16"
)
# A published id, on the Hub (owner/name) or on Kaggle (owner/model/framework/variation), and not a path on some
# machine.
PUBLISHED_ID = re.compile(r"(?![./~])[\w.-]+/[\w.-]+(/(?i:transformers|pytorch|keras|gguf)/[\w.-]+(/\d+)?)?")
OWN_BASE = "vLLM does not read this name; it loads its own base."


def inspect_submission(path: Path, base: str | None = None) -> list[Finding]:
    """Check a submission without loading a model.

    Args:
        path: the zip.
        base: the model that it must fit, any name that `base_models.lora_modules` takes; without it the one that the
            adapter names, else the challenge's.

    Returns:
        Findings, fatal ones first. `findings.fatal` picks those that forbid submitting it.

    Raises:
        FileNotFoundError: there is no such file or base.
        ValueError: `base` is a folder of another architecture.
        OSError: the temporary folder has no room for the adapter.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; grpo-kit package writes a zip. Check the path.")
    if base is not None:
        base_models.lora_modules(base)
    try:
        with zip_reader.open_zip(path) as zipped, tempfile.TemporaryDirectory(prefix="grpo-kit-") as scratch:
            findings = _check_archive(zipped, path)
            if (inside := _find_adapter(zipped, findings)) is not None:
                unpack_files(zipped, inside, Path(scratch))
                findings += check_folder(Path(scratch), base)
    except Refused as refused:
        findings = [refused.finding]
    order = (FATAL, WARNING, OK)
    return sorted(dict.fromkeys(findings), key=lambda finding: order.index(finding.severity))


def unpack_adapter(path: Path, folder: Path) -> None:
    """Unpack the two files of a submission, checked or not, into `folder`, wherever they lie in the zip.

    Raises:
        Refused: the zip is damaged or unsafe, or holds no adapter.
        OSError: the disk has no room.
    """
    findings: list[Finding] = []
    with zip_reader.open_zip(path) as zipped:
        inside = _find_adapter(zipped, findings)
        if inside is None:
            raise Refused(findings[-1].code, *findings[-1][2:])
        unpack_files(zipped, inside, folder)


def unpack_files(zipped: zipfile.ZipFile, inside: PurePosixPath, folder: Path) -> None:
    """Unpack config and tensors from the folder `inside` of a zip; read the other members, which must be undamaged."""
    for member in zipped.infolist():
        if member.is_dir():
            continue
        name = PurePosixPath(member.filename)
        is_adapter = name.parent == inside and name.name in (CONFIG_FILE, TENSORS_FILE)
        largest = LARGEST_CONFIG if is_adapter and name.name == CONFIG_FILE else zip_reader.MOST_UNPACKED
        zip_reader.unpack_member(zipped, member.filename, folder / name.name if is_adapter else None, largest)


def check_folder(folder: Path, base: str | None) -> list[Finding]:
    """Findings about an unpacked adapter; one without tensors is checked for its config alone."""
    findings = []
    try:
        config = read_adapter_config(folder / CONFIG_FILE)
        base, about_base = check_base(config.fields.get("base_model_name_or_path"), base)
        findings += [*config.findings, *about_base]
    except Refused as refused:
        findings.append(refused.finding)
        config, base = parse_adapter_config({}), base or base_models.PUBLISHED
    if (folder / TENSORS_FILE).is_file():
        try:
            entries = read_header(folder / TENSORS_FILE)
        except Refused as refused:
            return [*findings, refused.finding]
        modules = base_models.lora_modules(base)
        halves, about_tensors = tensor_check.check_tensors(entries, config, modules)
        values = value_check.summarize_values(folder / TENSORS_FILE, entries)
        findings += [*about_tensors, *value_check.check_values(values, halves)]
    return findings


def check_base(name: object, expected: str | None) -> tuple[str, list[Finding]]:
    """Choose the base to compare an adapter with, and judge the name that the adapter gives its base.

    Args:
        name: `base_model_name_or_path` of the adapter.
        expected: the base that the user gives; None takes the adapter's own, or the challenge's if that is unknown.

    Returns:
        (the base, findings about the name).
    """
    recognized = base_models.recognize_base(name)
    base = base_models.recognize_base(expected) or expected or recognized or base_models.PUBLISHED
    remedy = f"Write {printable(base)} into base_model_name_or_path."
    if base == recognized != base_models.PUBLISHED:
        code, what = "base-other", f"The adapter is for {printable(name)}; the challenge is about 3 Nano 30B."
        does = f"vLLM loads {base_models.PUBLISHED}, for which this adapter was not trained."
        remedy = "Use it with its own base; for the challenge train with the preset t4, 24gb or 80gb."
        if base in base_models.EMBEDDED:
            code, what = "base-tiny", "The adapter is for the embedded tiny policy."
            does = f"vLLM loads {base_models.PUBLISHED}, and no tensor of this adapter fits it."
            remedy = "Use it only to try the workflow."
        return base, [Finding(code, WARNING, what, does, remedy)]
    alike = (
        recognized
        and not base_models.recognize_base(base)
        and (base_models.lora_modules(base) == base_models.lora_modules(recognized))
    )
    if recognized and (base == recognized or alike):
        if name in (base_models.PUBLISHED, *base_models.EMBEDDED) or PLACES.search(name.lower()):
            return base, [Finding("base", OK, f"The base is {printable(name)}.")]
        what = f"The base is named {printable(name)}, not {printable(base)}."
        remedy = f"Unless this base was trained further, write {printable(base)} into base_model_name_or_path."
        return base, [Finding("base-name", WARNING, what, OWN_BASE, remedy)]
    if expected and name == expected:
        return base, [Finding("base", OK, f"The base is {printable(name)}.")]
    if not isinstance(name, str) or not PUBLISHED_ID.fullmatch(name):
        what = f"base_model_name_or_path is {printable(name)}, which does not say what the base is."
        return base, [Finding("base-unknown", WARNING, what, OWN_BASE, remedy)]
    what = f"The adapter is for {printable(name)}, not for {printable(base)}."
    does = "vLLM puts it on its own base: it fails, or scores weights that were trained for another model."
    remedy = f"Train on {printable(base)}. If you did, write that name into base_model_name_or_path."
    return base, [Finding("wrong-base", FATAL, what, does, remedy)]


def _check_archive(zipped: zipfile.ZipFile, path: Path) -> list[Finding]:
    size, findings = path.stat().st_size, []
    if size > LARGEST_ACCEPTED:
        what = f"The zip has {size / 1e6:,.0f} MB; the largest zip that Kaggle is known to have accepted had 3,095."
        remedy = "Save it in bfloat16 or float16, or at a lower rank."
        findings.append(Finding("size", WARNING, what, "Whether Kaggle accepts it is unknown.", remedy))
    files = sum(not entry.is_dir() for entry in zipped.infolist())
    what = f"{files} files, {size / 2**20:,.2f} MiB; nothing in it is unsafe to unpack."
    remedy = "" if path.name == "submission.zip" else "Submit it under the name submission.zip."
    return [*findings, Finding("archive", OK, what, "", remedy)]


def _find_adapter(zipped: zipfile.ZipFile, findings: list[Finding]) -> PurePosixPath | None:
    """The folder in the zip whose adapter the scorer would load; what is odd about it is added to `findings`."""
    members = [PurePosixPath(entry.filename) for entry in zipped.infolist() if not entry.is_dir()]
    configs = [
        member
        for member in members
        if member.name == CONFIG_FILE and not any(part.startswith(".") for part in member.parts[:-1])
    ]
    if not configs:
        near = [str(member) for member in members if member.name.lower().endswith((CONFIG_FILE, ".zip"))]
        what = f"The zip holds no {CONFIG_FILE}" + (f" ({printable_list(near)} is not one)." if near else ".")
        does = "vLLM finds no adapter, so the submission will fail."
        findings.append(
            Finding("no-config", FATAL, what, does, "Pack with grpo-kit package: two files, not in a folder.")
        )
        return None
    if len(configs) > 1:
        what = f"{len(configs)} files are named {CONFIG_FILE}: {printable_list([str(member) for member in configs])}."
        does = "The scorer takes the first one that it finds; which one that is cannot be told."
        findings.append(Finding("two-configs", FATAL, what, does, "Pack one adapter, without checkpoints."))
        return None
    folder = configs[0].parent
    if folder != PurePosixPath("."):
        what = f"The adapter lies in the folder {printable(str(folder))}."
        does = "The scorer looks into folders too and loads it."
        findings.append(Finding("nested", WARNING, what, does, "Pack the two files without a folder."))
    beside = {member.name for member in members if member.parent == folder}
    if TENSORS_FILE not in beside:
        findings.append(_missing_tensors(members, beside))
    ignored = [str(member) for member in members if member not in (folder / CONFIG_FILE, folder / TENSORS_FILE)]
    pickles = [name for name in ignored if name.lower().endswith(PICKLES) and TENSORS_FILE in beside]
    if pickles:
        what = f"{printable_list(pickles)} may be pickles, which can run code when they are read; they were not opened."
        findings.append(Finding("pickle-ignored", WARNING, what, "vLLM reads only the safetensors.", "Leave them out."))
    if others := [name for name in ignored if name not in pickles]:
        what = f"{len(others)} more files: {printable_list(others, 6)}."
        does = "vLLM ignores them; it takes the tokenizer and the chat template of the base."
        remedy = "Leave them out, and train with the base's chat template."
        findings.append(Finding("ignored-files", WARNING, what, does, remedy))
    return folder


def _missing_tensors(members: list[PurePosixPath], beside: set[str]) -> Finding:
    if pickled := sorted(beside & {"adapter_model.bin", "adapter_model.pt"}):
        what = f"The weights are {pickled[0]}, a pickle, which can run code when it is read; it was not opened."
        remedy = f"Save them as {TENSORS_FILE} (PEFT: safe_serialization=True)."
        does = "vLLM reads it with torch.load, and fails if it holds anything but tensors."
        return Finding("pickle", FATAL, what, does, remedy)
    elsewhere = [str(member) for member in members if member.name.endswith((".safetensors", ".bin"))]
    what = f"No {TENSORS_FILE} lies beside {CONFIG_FILE}" + (
        f"; {printable_list(elsewhere)} is not read." if elsewhere else "."
    )
    does = "vLLM finds no weights, so the submission will fail."
    return Finding("no-tensors", FATAL, what, does, "Pack both files side by side.")
