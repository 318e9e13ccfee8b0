"""`grpo-kit export`: a folder for llama.cpp and Ollama, with the adapter as a GGUF or with the merged model.

What will be written is planned first, with its size; nothing is touched until then. A folder is filled elsewhere and
moved into place when it is complete. What it says of a run comes from the run's record.
"""

import hashlib
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from grpo_kit import __version__
from grpo_kit.adapters.checkpoints.opening import open_adapter
from grpo_kit.adapters.layouts import read_pairs
from grpo_kit.adapters.model_files import find_base_folder, list_shards
from grpo_kit.config.checks import require_one_of
from grpo_kit.handoff import merging
from grpo_kit.handoff.companions import list_companions, read_companions
from grpo_kit.nemotron import base_models
from grpo_kit.publishing.llama_cpp import gguf_lora, readme
from grpo_kit.publishing.llama_cpp.as_trained import Training, read_training
from grpo_kit.publishing.llama_cpp.bases import Base, find_base, find_named
from grpo_kit.publishing.llama_cpp.merge_record import RECORD, read_record
from grpo_kit.publishing.llama_cpp.modelfile import count_context, is_template_of, make_modelfile
from grpo_kit.publishing.secret_scan import refuse_secrets
from grpo_kit.runs.files import follow_link, hash_of, new_folder, require_folder, to_json, write_text
from grpo_kit.runs.run import Run

SUMS = "SHA256SUMS"
FORMS = {  # by --to: the names in its folder
    "gguf-lora": ("adapter.gguf", "Modelfile", "README.md", SUMS),
    "merged": ("model", "Modelfile", "README.md", SUMS, RECORD),
}

Progress = Callable[..., None]


class Export(NamedTuple):
    """What will be written.

    Attributes:
        to: one of FORMS.
        run: the run; None for an adapter from elsewhere.
        training: what the run's record says; None for an adapter from elsewhere.
        name: of the run or the adapter's folder.
        adapter: the adapter's folder.
        base: its base.
        out: the folder.
        nbytes: bytes of the large file or folder in it.
        free: bytes that are free on the disk of `out`.
        plan: the GGUF; None for a merged model.
        notes: sentences on the base, on the prompt, and on what was converted.
    """

    to: str
    run: Run | None
    training: Training | None
    name: str
    adapter: Path
    base: Base
    out: Path
    nbytes: int
    free: int
    plan: gguf_lora.Plan | None
    notes: list[str]

    def describe(self) -> list[str]:
        """What will be written, and what it needs, in lines."""
        large, *small = FORMS[self.to]
        size = readme.format_size(self.nbytes)
        what = f"{size} in bf16, from {self.base.source}"
        if self.plan:
            ranks = sorted({stack.rank for stack in self.plan.stacks})
            what = (
                f"{size}, {2 * len(self.plan.stacks)} tensors in {self.plan.dtype}, rank {', '.join(map(str, ranks))}, "
                f"alpha {self.plan.alpha:g}, for {self.plan.architecture}"
            )
        remarks = self.training.remarks if self.training else []
        lines = [f"{self.out / large}: {what}", *(str(self.out / name) for name in small), *remarks, *self.notes]
        needed, free = map(readme.format_size, (self.needed, self.free))
        return [*lines, f"needs {needed} of the disk, which has {free} free"]

    @property
    def about(self) -> readme.About:
        """What the README says."""
        return readme.About(self.name, self.base.label, self.base.revision, self.training, self.notes)

    @property
    def places(self) -> list[str]:
        """Places of this machine, which must not stand in what is passed on."""
        return [str(place) for place in (Path.home(), Path.cwd(), *([self.run.root.absolute()] if self.run else []))]

    @property
    def needed(self) -> int:
        """Bytes that the disk must have."""
        return self.nbytes + (1 << 20 if self.plan else merging.SPARE)


def plan_export(
    run: Run | None,
    to: str,
    adapter: Path | None = None,
    base: str | None = None,
    out: Path | None = None,
    dtype: str | None = None,
) -> Export:
    """Check what will be exported; nothing is written.

    Args:
        run: a trained run; None for an adapter from elsewhere.
        to: `gguf-lora` or `merged`.
        adapter: the folder of an adapter from elsewhere; it needs `out`.
        base: a folder with the base's files, or its id on the Hub: for an adapter from elsewhere in place of the base
            that it names, for a run where its base lies elsewhere now or was in a local folder.
        out: the folder; None for `export/FORM` of the run. What an earlier export wrote there is replaced.
        dtype: `float32` or `float16`, of the tensors of the GGUF; None for `float32`.

    Raises:
        FileExistsError: `out` holds something else.
        FileNotFoundError: the run is not trained, or the adapter is missing, or the base is unknown.
        RuntimeError: the package gguf is not installed.
        ValueError: an option is unknown, or the adapter is not a plain LoRA of that base.
    """
    require_one_of("--to", to, tuple(FORMS))
    if dtype and to == "merged":
        raise ValueError(
            f"--dtype is {dtype}, and a merged model is always bf16; only a GGUF has a choice. Leave it out."
        )
    dtype = dtype or gguf_lora.DTYPES[0]
    require_one_of("--dtype", dtype, gguf_lora.DTYPES)
    if adapter and not out:
        raise ValueError(f"--adapter {adapter} comes from elsewhere and has no place in a run. Name one with --out.")
    folder = adapter or run.result.adapter
    out = follow_link(out or run.path / "export" / to)
    _check_place(out, to)
    source = open_adapter(folder, base)
    training = None if adapter else read_training(run)
    named = source.config.fields.get("base_model_name_or_path")
    found = find_base(training.policy, base) if training else find_named(folder, named, base)
    modules = base_models.lora_modules(found.source)  # raises for an unknown base
    pairs, notes = read_pairs(source, modules)
    plan = gguf_lora.plan_gguf(pairs, found.source, source.config.alpha, dtype) if to == "gguf-lora" else None
    if plan and plan.added:
        notes.append(f"{plan.added} matrices of experts get a pair of zeros, because llama.cpp wants all of a layer")
    nbytes = plan.nbytes if plan else _merged_bytes(found.source, modules)
    nearest = next(place for place in (out, *out.parents) if place.exists())
    sentences = [f"{note.rstrip('.')}." for note in (*source.remarks, *notes)]
    return Export(
        to,
        None if adapter else run,
        training,
        folder.resolve().name if adapter else run.name,
        folder,
        found,
        out,
        nbytes,
        shutil.disk_usage(nearest).free,
        plan,
        [*found.notes, *_compare_prompts(training), *sentences],
    )


def write_export(export: Export, progress: Progress | None = None) -> list[str]:
    """Write the planned folder. After an error nothing is left behind, and an earlier export is still there.

    Args:
        export: from `plan_export`.
        progress: called with (number, count) for the tensors of a GGUF, with (number, count, name) before each shard of
            a merged model.

    Returns:
        Names of what was written: nothing where the folder holds the same merged model and texts already.

    Raises:
        FileNotFoundError: the base's weights, which a merged model needs, are not on this machine.
        OSError: the disk has no room.
        ValueError: the adapter changes nothing, or holds numbers that the file cannot have; a text holds a secret or a
            place of this machine.
    """
    # The files are passed on.
    words = {"The adapter's name": export.name, "The base's name": export.base.label}
    words["policy.revision"] = export.base.revision or ""
    if told := export.training:
        words |= {"data.system_prompt": told.system or "", "data.prompt_suffix": told.suffix or ""}
    refuse_secrets((), export.places, words=words)
    with export.run.lock("export") if export.run else nullcontext():
        if export.plan:
            _require_room(export)
            with new_folder(export.out) as folder:
                rounding = gguf_lora.write_gguf(
                    export.plan, folder / "adapter.gguf", export.name, export.base.label, progress
                )
                lost = rounding.describe(export.plan.dtype)
                about = export.about._replace(notes=[*export.notes, *([lost] if lost else [])])
                digest = hash_of(folder / "adapter.gguf")
                text = readme.describe_lora(about, digest)
                _write_texts(
                    export, folder, text, {"FROM": "base.gguf", "ADAPTER": "adapter.gguf"}, {"adapter.gguf": digest}
                )
            return list(FORMS[export.to])
        return _write_merged(export, progress)


def _write_merged(export: Export, progress: Progress | None) -> list[str]:
    if not (export.out / RECORD).exists():
        _require_room(export)
    embedded = str(base_models.EMBEDDED.get(base_models.recognize_base(export.base.source), export.base.source))
    base = find_base_folder(embedded, None if Path(embedded).is_dir() else export.base.revision)
    companions = list_companions(base)
    written = {name: content.decode("utf-8", "replace") for name, content in read_companions(base).items()}
    refuse_secrets((), export.places, words=written)
    states = {name: (base / name).stat() for name in list_shards(base)}
    made_of = {
        "grpo-kit": __version__,
        "adapter": hash_of(export.adapter),
        "base": export.base.label,
        "files": {path.name: hash_of(path) for path in companions},
        "shards": {name: [state.st_size, state.st_mtime_ns] for name, state in states.items()},
    }
    mtp = bool(gguf_lora.read_base_config(embedded).get("num_nextn_predict_layers"))

    def write_texts(folder: Path, record: dict[str, Any]) -> list[str]:
        files = record["files"]
        text = readme.describe_merged(export.about, sum(size for size, _ in files.values()), mtp, record["lost"])
        digests = {f"model/{name}": digest for name, (_, digest) in files.items()} | {RECORD: hash_of(folder / RECORD)}
        return _write_texts(export, folder, text, {"FROM": "merged-Q4_K_M.gguf"}, digests)

    if record := read_record(export.out, made_of):
        return write_texts(export.out, record)
    _require_room(export)
    with new_folder(export.out) as folder:
        merged = merging.merge_adapter(base, export.adapter, folder / "model", progress)
        files = {name: [(folder / "model" / name).stat().st_size, digest] for name, digest in merged.digests.items()}
        record = {"made_of": made_of, "lost": merged.lost, "files": files}
        write_text(folder / RECORD, to_json(record, indent=2) + "\n")
        write_texts(folder, record)
    return list(FORMS[export.to])


def _write_texts(export: Export, folder: Path, text: str, model: dict[str, str], digests: dict[str, str]) -> list[str]:
    """Write Modelfile, README.md and the sha256 of all files; returns the names of those that were not there so."""
    training = export.training
    words = (training.system, training.suffix) if training else ()
    sampling = training.sampling if training else None
    context = count_context(sampling, *words) if sampling else 0
    thinking, system = export.about.thinking, (training.system if training else "") or ""
    texts = {"Modelfile": make_modelfile(model, thinking, system, sampling, context), "README.md": text}
    digests = digests | {name: _digest(content) for name, content in texts.items()}
    texts[SUMS] = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    refuse_secrets((), export.places, words=texts)
    changed = {name: content for name, content in texts.items() if hash_of(folder / name) != _digest(content)}
    for name, content in changed.items():
        write_text(folder / name, content)
    return list(changed)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _require_room(export: Export) -> None:
    if export.free < export.needed:
        raise OSError(
            f"{export.out} needs {readme.format_size(export.needed)}, and its disk has "
            f"{readme.format_size(export.free)} free; nothing was written. Make room, or choose another disk with "
            "--out."
        )


def _compare_prompts(training: Training | None) -> list[str]:
    """A sentence unless the Modelfile's prompt is known to be that of the run's chat template."""
    if training is None:
        return []
    from grpo_kit.policy.load import load_tokenizer

    try:
        tokenizer, words = load_tokenizer(training.policy), (training.system or "", training.suffix or "")
        same = is_template_of(tokenizer, training.policy.enable_thinking, *words)
    except (OSError, ValueError):
        return ["The Modelfile's prompt was not compared with the run's chat template, which is not on this machine."]
    if same:
        return []
    return ["The run's chat template writes another prompt than the Modelfile's TEMPLATE. Ask by llama-server --jinja."]


def _check_place(out: Path, to: str) -> None:
    """Raise FileExistsError where `out` holds more than an export of this form."""
    require_folder(out, "Name another folder with --out.")
    strange = sorted({path.name for path in out.iterdir()} - {*FORMS[to]}) if out.exists() else []
    if strange:
        raise FileExistsError(
            f"{out} holds {strange[0]}, which an export does not write. Move it away, or name another folder with "
            "--out."
        )


def _merged_bytes(base: str, modules: base_models.Modules) -> int:
    """Bytes of a merged model in bf16, by its matrices and embeddings, from the config alone."""
    config = gguf_lora.read_base_config(base)
    embeddings = config["vocab_size"] * config["hidden_size"]
    return 2 * (embeddings + sum(out * inside for out, inside in modules.values()))
