"""`grpo-kit export`: a folder for llama.cpp and Ollama, with the adapter as a GGUF or with the merged model.

What will be written is planned first, with its size; nothing is touched until then. A folder is filled elsewhere and
moved into place when it is complete.
"""

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from grpo_kit.adapters.checkpoints.opening import open_adapter
from grpo_kit.adapters.layouts import read_pairs
from grpo_kit.adapters.model_files import find_base_folder
from grpo_kit.config import RunConfig
from grpo_kit.config.checks import require_one_of
from grpo_kit.handoff import merging
from grpo_kit.nemotron import base_models
from grpo_kit.policy.model_source import base_model_name
from grpo_kit.publishing.llama_cpp import gguf_lora, readme
from grpo_kit.publishing.run_facts import read_measurements
from grpo_kit.runs.files import hash_of, new_folder, require_folder, write_text
from grpo_kit.runs.run import Run

FORMS = {  # by --to: the names in its folder
    "gguf-lora": ("adapter.gguf", "Modelfile", "README.md", "SHA256SUMS"),
    "merged": ("model", "README.md", "export.json"),
}

Progress = Callable[..., None]


class Export(NamedTuple):
    """What will be written.

    Attributes:
        to: one of FORMS.
        config: the run's settings.
        run: the run; None for an adapter from elsewhere.
        name: of the run or the adapter's folder.
        adapter: the adapter's folder.
        base: the base's id, or its folder.
        out: the folder.
        nbytes: bytes of the large file or folder in it.
        free: bytes that are free on the disk of `out`.
        plan: the GGUF; None for a merged model.
        notes: sentences on what was converted.
    """

    to: str
    config: RunConfig
    run: Run | None
    name: str
    adapter: Path
    base: str
    out: Path
    nbytes: int
    free: int
    plan: gguf_lora.Plan | None
    notes: list[str]

    def describe(self) -> list[str]:
        """What will be written, and what it needs, in lines."""
        large, *small = FORMS[self.to]
        size = readme.format_size(self.nbytes)
        what = f"{size} in bf16, from {self.base}"
        if self.plan:
            ranks = sorted({stack.rank for stack in self.plan.stacks})
            what = (
                f"{size}, {2 * len(self.plan.stacks)} tensors in {self.plan.dtype}, rank {', '.join(map(str, ranks))}, "
                f"alpha {self.plan.alpha:g}, for {self.plan.architecture}"
            )
        lines = [f"{self.out / large}: {what}", *(str(self.out / name) for name in small), *self.notes]
        needed, free = map(readme.format_size, (self.needed, self.free))
        return [*lines, f"needs {needed} of the disk, which has {free} free"]

    @property
    def label(self) -> str:
        """The base as the files name it: its id, or of a folder the last part, for files are passed on."""
        return Path(self.base).name if Path(self.base).is_dir() else self.base

    @property
    def needed(self) -> int:
        """Bytes that the disk must have."""
        return self.nbytes + (1 << 20 if self.plan else merging.SPARE)


def plan_export(
    config: RunConfig,
    run: Run,
    to: str,
    adapter: Path | None = None,
    base: str | None = None,
    out: Path | None = None,
    dtype: str = "float32",
) -> Export:
    """Check what will be exported; nothing is written.

    Args:
        config: the run's settings.
        run: a trained run.
        to: `gguf-lora` or `merged`.
        adapter: a folder from elsewhere to export in place of the run's adapter; it needs `out`.
        base: the base of that adapter; None for the one that it names.
        out: the folder; None for `export/FORM` of the run. What an earlier export wrote there is replaced.
        dtype: `float32` or `float16`, of the tensors of the GGUF.

    Raises:
        FileExistsError: `out` holds something else.
        FileNotFoundError: the run is not trained, or the adapter is missing, or the base is unknown.
        RuntimeError: the package gguf is not installed.
        ValueError: an option is unknown, or the adapter is not a plain LoRA of that base.
    """
    require_one_of("--to", to, tuple(FORMS))
    require_one_of("--dtype", dtype, gguf_lora.DTYPES)
    if adapter and not out:
        raise ValueError(f"--adapter {adapter} comes from elsewhere and has no place in a run. Name one with --out.")
    folder = adapter or run.result.adapter
    out = (out or run.path / "export" / to).absolute()
    _check_place(out, to)
    source = open_adapter(folder, base)
    named = base or (source.config.fields.get("base_model_name_or_path") if adapter else base_model_name(config.policy))
    resolved = base_models.resolve_base(named)
    modules = base_models.lora_modules(str(named))  # raises for an unknown base
    pairs, notes = read_pairs(source, modules)
    plan = gguf_lora.plan_gguf(pairs, str(named), source.config.alpha, dtype) if to == "gguf-lora" else None
    if plan and plan.added:
        notes.append(f"{plan.added} matrices of experts get a pair of zeros, because llama.cpp wants all of a layer")
    nbytes = plan.nbytes if plan else _merged_bytes(str(named), modules)
    nearest = next(place for place in (out, *out.parents) if place.exists())
    free = shutil.disk_usage(nearest).free
    name = folder.name if adapter else run.name
    base_id = str(named) if Path(str(named)).is_dir() else resolved
    return Export(
        to, config, None if adapter else run, name, folder, base_id, out, nbytes, free, plan,
        [*source.remarks, *notes],
    )  # fmt: skip


def write_export(export: Export, progress: Progress | None = None) -> bool:
    """Write the planned folder. After an error nothing is left behind, and an earlier export is still there.

    Args:
        export: from `plan_export`.
        progress: called with (number, count) for the tensors of a GGUF, with (number, count, name) before each shard of
            a merged model.

    Returns:
        Whether something was written; False where the folder holds the same merged model already.

    Raises:
        FileNotFoundError: the base's weights, which a merged model needs, are not on this machine.
        OSError: the disk has no room.
        ValueError: the adapter changes nothing, or holds numbers that the file cannot have.
    """
    if export.free < export.needed:
        raise OSError(
            f"{export.out} needs {readme.format_size(export.needed)}, and its disk has "
            f"{readme.format_size(export.free)} free; nothing was written. Make room, or choose another disk with "
            "--out."
        )
    with export.run.lock("export") if export.run else nullcontext():
        figures = read_measurements(export.run) if export.run else None
        measured = readme.describe_measurements(export.config, figures)
        if export.plan:
            with new_folder(export.out) as folder:
                _fill_lora(export, folder, measured, progress)
            return True
        policy = export.config.policy
        embedded = base_models.EMBEDDED.get(export.base, export.base)
        base = find_base_folder(str(embedded), policy.revision if policy.model == export.base else None)
        made_of = {"adapter": hash_of(export.adapter), "base": export.base, "config": hash_of(base / "config.json")}
        if _is_up_to_date(export.out, made_of):
            return False
        with new_folder(export.out) as folder:
            merging.merge_adapter(base, export.adapter, folder / "model", progress)
            mtp = bool(gguf_lora.read_base_config(str(embedded)).get("num_nextn_predict_layers"))
            text = readme.describe_merged(
                export.config, export.name, export.label, bool(export.run), export.nbytes, mtp, measured
            )
            write_text(folder / "README.md", text)
            write_text(folder / "export.json", json.dumps(made_of, indent=2) + "\n")
    return True


def _fill_lora(export: Export, folder: Path, measured: str, progress: Progress | None) -> None:
    rounding = gguf_lora.write_gguf(export.plan, folder / "adapter.gguf", export.name, export.label, progress)
    digest = hash_of(folder / "adapter.gguf")
    stages = export.run.trained_stages() if export.run else []
    write_text(folder / "Modelfile", readme.make_modelfile(export.config, bool(export.run)))
    write_text(folder / "SHA256SUMS", f"{digest}  adapter.gguf\n")
    notes = [f"{note}." for note in export.notes] + [*filter(None, [rounding.describe(export.plan.dtype)])]
    text = readme.describe_lora(export.config, export.name, export.label, stages, digest, measured, notes)
    write_text(folder / "README.md", text)


def _check_place(out: Path, to: str) -> None:
    """Raise FileExistsError where `out` holds more than an export of this form."""
    require_folder(out, "Name another folder with --out.")
    strange = sorted({path.name for path in out.iterdir()} - {*FORMS[to]}) if out.exists() else []
    if strange:
        raise FileExistsError(
            f"{out} holds {strange[0]}, which an export does not write. Move it away, or name another folder with "
            "--out."
        )


def _is_up_to_date(out: Path, made_of: dict[str, Any]) -> bool:
    """Whether `out` holds a model merged from the same base and adapter; the folder was complete when it got there."""
    try:
        return json.loads((out / "export.json").read_text(encoding="utf-8")) == made_of and (out / "model").is_dir()
    except (OSError, ValueError):
        return False


def _merged_bytes(base: str, modules: base_models.Modules) -> int:
    """Bytes of a merged model in bf16, by its matrices and embeddings, from the config alone."""
    config = gguf_lora.read_base_config(base)
    embeddings = config["vocab_size"] * config["hidden_size"]
    return 2 * (embeddings + sum(out * inside for out, inside in modules.values()))
