"""The folder that is published, `publish/` of the run: the adapter, its tokenizer, the card, the curves, the record.

The files are those of NAMES and nothing else. The same run gives the same bytes, so what is on the Hub can be compared.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from grpo_kit import __version__
from grpo_kit.adapters.adapter_config import CONFIG_FILE, TENSORS_FILE
from grpo_kit.adapters.findings import Refused
from grpo_kit.adapters.folder import AdapterFolder
from grpo_kit.adapters.names import published_name
from grpo_kit.adapters.safetensors_files import read_header
from grpo_kit.config import RunConfig
from grpo_kit.display import charts, report
from grpo_kit.publishing import public_record
from grpo_kit.publishing.base import Base, require_fit
from grpo_kit.publishing.card import CURVES, render_card
from grpo_kit.publishing.public_record import RECORD
from grpo_kit.publishing.run_facts import Facts, collect_facts
from grpo_kit.publishing.secret_scan import refuse_secrets
from grpo_kit.runs.files import hash_of, new_folder, to_json, write_text
from grpo_kit.runs.run import Run
from grpo_kit.runs.trained import MEASURED
from grpo_kit.submission.value_check import summarize_values

CARD = "README.md"
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json", "added_tokens.json",
    "tokenizer.model", "vocab.json", "merges.txt",
)  # fmt: skip
NAMES = (CARD, CONFIG_FILE, TENSORS_FILE, *TOKENIZER, CURVES, RECORD)  # nothing else is ever published
LOCAL_FIELDS = ("is_local", "local_files_only", "name_or_path")  # of tokenizer_config.json: about this machine


def read_facts(config: RunConfig, run: Run, repo: str, base: Base) -> Facts:
    """Check a trained run's adapter, and read what its card says.

    Args:
        config: the run's configuration.
        run: the run; its last finished stage's adapter is taken.
        repo: USER/REPO, which the card names.
        base: the model that the adapter belongs to.

    Raises:
        FileNotFoundError: the run is not trained, or a file is missing.
        ValueError: the adapter changes nothing, has values that are not finite, is no plain LoRA, or does not fit the
            base; the data was prepared again since; a setting is not the one that the run was made with.
    """
    modules = read_modules(run.result.adapter)
    require_fit(modules, base)
    return collect_facts(config, run, repo, base, modules)


def build_folder(run: Run, facts: Facts) -> Path:
    """Write `publish/` of a trained run, in one step.

    Args:
        run: the run.
        facts: from `read_facts`.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: the base's tokenizer is missing.
        ValueError: a file would hold a secret.
    """
    files, base = run.result, facts.base
    out = run.path / "publish"
    places = (str(Path.home()), str(run.root.absolute()), str(Path.cwd()))
    samples = {
        f"The sample {each.title!r}": "\n".join(filter(None, (each.problem, each.answer, each.before, each.after)))
        for each in facts.examples
    }
    refuse_secrets([], places, words=public_record.list_own_words(facts) | samples)
    with run.lock("publish"), new_folder(out) as folder:
        shutil.copyfile(files.adapter / TENSORS_FILE, folder / TENSORS_FILE)
        fields = json.loads((files.adapter / CONFIG_FILE).read_text(encoding="utf-8"))
        fields |= {"base_model_name_or_path": base.name, "revision": base.revision, "inference_mode": True}
        write_text(folder / CONFIG_FILE, to_json(fields, indent=2, sort_keys=True) + "\n")
        _save_tokenizer(facts.config, folder)
        done = {"before", *(MEASURED[stage] for stage in facts.records)} & run.stages().keys()
        all_hold = len(done) == len(facts.measured)  # a point of another adapter must not stand in the picture
        charts.save_figure(report.draw_report(run, "", all_hold, finished=True), folder / CURVES)
        record = {"grpo-kit": __version__, "sha256": {TENSORS_FILE: hash_of(folder / TENSORS_FILE)}}
        record |= public_record.make_record(facts)
        write_text(folder / RECORD, to_json(record, indent=2, sort_keys=True) + "\n")
        write_text(folder / CARD, render_card(facts))
        refuse_secrets(list_files(folder), places)
    return out


def list_files(folder: Path) -> list[Path]:
    """The files of a folder that may be published, in the order of NAMES.

    Raises:
        ValueError: another file lies there.
    """
    if others := sorted(path.name for path in folder.iterdir() if path.name not in NAMES or not path.is_file()):
        raise ValueError(f"{folder} holds {others[0]}, which is never published. Move it elsewhere.")
    return [folder / name for name in NAMES if (folder / name).is_file()]


def read_modules(adapter: Path) -> dict[str, list[tuple[int, ...]]]:
    """{published name of a module: the shapes of its A and B} of an adapter that is fit to be published.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: it is no plain LoRA, all of its B are zero, a value is not finite, or half of a pair is missing.
    """
    opened = AdapterFolder(adapter)
    try:
        values = summarize_values(opened.path, read_header(opened.path))
    except Refused as refused:
        raise ValueError(f"{opened.path}: {refused}") from None
    if bad := [key for key, value in values.items() if not value.finite]:
        raise ValueError(f"{opened.path} holds NaN or infinity in {bad[0][:120]}. Train again; see the run's alarms.")
    if all(value.zero for key, value in values.items() if ".lora_B" in key):
        raise ValueError(
            f"Every lora_B of {opened.path} is zero, so the adapter changes nothing and its card would describe the "
            "base. Train the run, and look at its alarms."
        )
    modules: dict[str, list[tuple[int, ...]]] = {}
    for key, entry in sorted(opened.entries.items()):  # A before B
        modules.setdefault(published_name(key.partition(".lora_")[0]), []).append(entry.shape)
    if odd := [name for name, shapes in modules.items() if [len(shape) for shape in shapes] != [2, 2]]:
        raise ValueError(f"{opened.path} has no pair of matrices for {odd[0][:120]}. Save the adapter again.")
    return modules


def _save_tokenizer(config: RunConfig, folder: Path) -> None:
    from grpo_kit.policy.load import load_tokenizer

    with tempfile.TemporaryDirectory() as aside:
        load_tokenizer(config.policy).save_pretrained(aside)
        for name in TOKENIZER:
            if (path := Path(aside, name)).is_file():
                shutil.copyfile(path, folder / name)
    path = folder / "tokenizer_config.json"
    fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    kept = {key: value for key, value in fields.items() if key not in LOCAL_FIELDS}
    write_text(path, to_json(kept, indent=2, ensure_ascii=False) + "\n")
