"""From any sets of problems to clean, split, traceable rows: `data/{train,val,test}/data.jsonl` and `manifest.json`.

Every source goes the same way: read and mended (`sources`), unfit rows dropped (`cleaning`), problems of evaluation sets
kept out (`leaks`), repetitions dropped and variants tied together (`duplicates`), and split by a hash of the normalised
problem. Where each row went is counted in the manifest's funnel and kept in `dropped.jsonl`; the same inputs, seed and
versions give the same bytes. What a killed preparation had finished lies in the run's hidden `.data` folder, and the
next one goes on from there.
"""

import contextlib
import functools
import hashlib
import json
import platform
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from grpo_kit import __version__
from grpo_kit.config import Data, RunConfig, to_yaml
from grpo_kit.data import gold_answers, recipes, row_options, sources
from grpo_kit.data.steps import Pipeline, Row, Show, digest_of, kept_for_later
from grpo_kit.policy.chat import build_messages
from grpo_kit.rewards.tools.loading import fingerprint
from grpo_kit.runs.files import hash_of, new_folder, write_lines, write_text
from grpo_kit.runs.run import Run

SPLITS = ("train", "val", "test")
AGENT = {"type": "responses_api_agents", "name": "math_with_judge_simple_agent"}  # NeMo-Gym's for math
VERSIONS = ("datasets", "numpy", "pyarrow")


def prepare(
    config: RunConfig, run: Run, verifier: gold_answers.Reward | None = None, show: Show | None = None
) -> dict[str, Any]:
    """Write the run's data and return its manifest; a run whose data stands already is left as it is.

    `verifier`: the reward that decides which golds are usable and which are the same; without it golds are compared as
    text. `show(step, steps, name)` is told of each step. Raises FileNotFoundError for a source that is not to be had,
    ValueError for one without usable columns, rows, or enough of them; then nothing is left behind.
    """
    started = time.monotonic()
    settings = {"data": config.data.identity(), "seed": config.run.seed, "verifier": verifier and fingerprint(verifier)}
    del settings["data"]["paths"]  # where a set lies on this machine; its bytes count, and are among what is read
    if config.data.max_prompt_tokens:
        settings["tokenizer"] = config.policy.model
    items = _items(config.data.source)
    if run.is_done("data", settings, _files_here(items, config.data), config.run.force):
        return json.loads(run.manifest.read_text())
    found = locate_sources(config)
    for source in found:
        if source.recipe.evaluation:
            raise ValueError(
                f"data.source has {source.name}, a set to be judged by; training on it makes every later accuracy worthless. "
                f"Name training sets: {', '.join(recipes.list_recipes(evaluation=False))}."
            )
    held, not_checked = evaluation_sets(config, found)
    reads = [path for source in (*found, *held) for path in source.files]
    inputs = {str(path): hash_of(path) for path in reads}
    key = {**settings, "read": inputs, "held": [source.name for source in held], "version": __version__}
    with kept_for_later(run.path / ".data", key) as finished:
        pipeline = Pipeline(config, finished, show or (lambda *_: None))
        pipeline.read(found)
        pipeline.clean(verifier)
        report = pipeline.keep_out(held)
        ties = pipeline.deduplicate(verifier)
        pipeline.show("writing")
        seed = config.run.seed
        splits = split(pipeline.ids(), ties, config.data, seed)
        parts = {name: map(pipeline.rows.__getitem__, numbers) for name, numbers in splits.items()}
        manifest = {
            "run_hash": digest_of({**settings, "read": sorted(str(digest) for digest in inputs.values())})[:16],
            "source_splits": list(dict.fromkeys(source.recipe.split for source in found)),
            "source": config.data.source,
            "sources": [_lineage(source) | pipeline.counts[source.name] for source in found],
            "read": len(pipeline.rows),
            "dropped": dict(Counter(why[0] for why in pipeline.gone.values())),
            "funnel": pipeline.funnel(),
            "evaluation": report,
            "not_checked": not_checked,
            "versions": {"python": platform.python_version(), "grpo-kit": __version__}
            | {name: metadata.version(name) for name in VERSIONS},
        }
        with new_folder(run.manifest.parent) as folder:
            rows = {
                name: map(functools.partial(row_of, data=config.data, seed=seed if name == "train" else None), of_split)
                for name, of_split in parts.items()
            }
            manifest = write(folder, rows, manifest)
            write_lines(folder / "dropped.jsonl", pipeline.dropped())
    wrote = [run.manifest, *(run.data_file(name) for name in SPLITS), run.manifest.parent / "dropped.jsonl"]
    run.record_stage("data", settings, reads, wrote, time.monotonic() - started, to_yaml(config))
    return manifest


def write(folder: Path, splits: Mapping[str, Iterable[dict[str, Any]]], manifest: dict[str, Any]) -> dict[str, Any]:
    """Write `{train,val,test}/data.jsonl` and `manifest.json` into `folder`; returns the manifest as written.

    The manifest gets the keys that NeMo-RL's step reads (`train`, `val`, `test`, `mode`; `source_splits` and `run_hash`
    are the caller's), the number of rows of each split and its sha256. Paths in it are relative to itself.
    """
    counts = dict.fromkeys(SPLITS, 0)

    def counted(name: str) -> Iterator[dict[str, Any]]:
        for row in splits[name]:
            counts[name] += 1
            yield row

    for name in SPLITS:
        write_lines(folder / name / "data.jsonl", counted(name))
    whole = {
        **{name: f"{name}/data.jsonl" for name in SPLITS},
        "mode": "resolve",
        **manifest,
        "rows": counts,
        "sha256": {name: hash_of(folder / name / "data.jsonl") for name in SPLITS},
    }
    write_text(folder / "manifest.json", json.dumps(whole, indent=2, ensure_ascii=False) + "\n")
    return whole


def row_of(row: Row, data: Data, seed: int | None = None) -> dict[str, Any]:
    """The row as it is written: ours, then NeMo-RL's `input` and `output`, then NeMo-Gym's math row.

    With `seed`, as a training row, it may ask for no thinking or state a budget (`row_options`).
    """
    kept = {
        "id": row.id,
        "prompt": build_messages(row.problem, data.prompt_suffix, data.system_prompt),
        "answer": row.answer,
        "source": row.source,
        "pass_rate": None,  # not screened
        "input": row.problem,
        "output": gold_answers.strip_delimiters(row.answer),
        "question": row.problem,
        "expected_answer": gold_answers.strip_delimiters(row.answer),
    }
    kept = kept if seed is None else row_options.add_row_option(kept, data, seed)
    return kept | {"responses_create_params": {"input": kept["prompt"]}, "agent_ref": AGENT}


def split(ids: Mapping[int, str], ties: Mapping[int, int], data: Data, seed: int) -> dict[str, list[int]]:
    """Numbers of the rows in train, val and test: shuffled by a hash of seed and id, tied rows staying together.

    `ids`: number to id. `ties`: number to the number it is tied to. A tied group that does not fit what is left of test
    or val goes to train. Raises ValueError when nothing is left to train on, or test cannot be filled.
    """
    wanted = {"test": data.test_size, "val": data.val_size}
    if len(ids) <= sum(wanted.values()):
        raise ValueError(
            f"{data.source} has {len(ids)} usable rows, and data.test_size {data.test_size} with data.val_size "
            f"{data.val_size} leaves none to train on. Set data.test_size and data.val_size lower."
        )
    groups: dict[int, list[int]] = {}
    for number in ids:
        groups.setdefault(ties.get(number, number), []).append(number)

    def place(members: list[int]) -> bytes:
        return hashlib.sha256(f"{seed} {min(ids[number] for number in members)}".encode()).digest()

    parts: dict[str, list[int]] = {name: [] for name in SPLITS}
    for members in sorted(groups.values(), key=place):
        fits = (name for name, size in wanted.items() if len(parts[name]) + len(members) <= size)
        parts[next(fits, "train")] += members
    if len(parts["test"]) < data.test_size:
        raise ValueError(
            f"data.test_size is {data.test_size}, and {data.source} has {len(parts['test'])} rows for it that are no variants of "
            "rows in train (same wording, other numbers). "
            + ("Set data.test_size so." if parts["test"] else "Add a source with other problems.")
        )
    return parts


def evaluation_sets(config: RunConfig, found: Sequence[sources.Source]) -> tuple[list[sources.Source], dict[str, str]]:
    """(sets to keep out, {set: why it was not checked}). Sets named in `data.decontaminate` must be there.

    Where none are named every set is taken that lies here or that the Hub gives; problems the kit makes leak nothing.
    """
    asked = config.data.decontaminate
    if asked is None and all(source.generated for source in found):
        return [], {}
    names = recipes.list_recipes(evaluation=True) if asked is None else asked
    held, not_checked = [], {}
    for source in (sources.locate_source(name, config.data) for name in names):
        try:
            if not source.files:
                next(sources.read_source(source, config.data, config.run.seed), None)
            held.append(source)
        except (FileNotFoundError, ValueError) as error:  # not to be had, or another set than its recipe says
            if asked is not None:
                raise
            not_checked[source.name] = str(error)
    return held, not_checked


def locate_sources(config: RunConfig) -> list[sources.Source]:
    """The sources that `data.source` names. Raises ValueError for an unknown one, FileNotFoundError for a missing file."""
    return _named_apart([sources.locate_source(item, config.data) for item in _items(config.data.source)])


def _items(source: str) -> list[str]:
    """The sources named, separated by commas; a file whose name has a comma is one source."""
    items = [source] if Path(source).is_file() else [item.strip() for item in source.split(",") if item.strip()]
    if not items or len(items) != len(set(items)):
        raise ValueError(f"data.source is {source!r}; it names one source or several different ones. Write it as a,b.")
    return items


def _files_here(items: list[str], data: Data) -> list[Path]:
    """The sources' files that lie on this machine; a run that is done does not need them any more."""
    found = []
    for item in items:
        with contextlib.suppress(FileNotFoundError):
            found += sources.locate_source(item, data).files
    return found


def _named_apart(found: list[sources.Source]) -> list[sources.Source]:
    """The sources, files of one name told apart by their folders."""
    names = [source.name for source in found]
    apart = ["/".join(s.files[0].parts[-2:]) if names.count(s.name) > 1 and s.files else s.name for s in found]
    return [replace(source, name=name) for source, name in zip(found, apart)]


def _lineage(source: sources.Source) -> dict[str, Any]:
    known = {key: value for key, value in asdict(source.recipe).items() if value not in (None, "", [], False)}
    files = {path.name: hash_of(path) for path in source.files}
    return {"name": source.name, "files": files, "recipe": known}
