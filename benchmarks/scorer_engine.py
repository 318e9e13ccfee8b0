"""The check of submissions beside the scorer's real engine: does each sentence agree with what vLLM does?

    python benchmarks/scorer_engine.py [--install] [--folder FOLDER] [--vllm VERSION] [--record]

All kinds of submissions that the tests know (`tests/helpers/submission_cases.py`) and zips that the packer makes are
handed to vLLM's own LoRA manager on its Nemotron-H with the embedded policy's widths (`scorer_worker.py`); no weights
are loaded and nothing is computed. It prints each case: what vLLM did, what the check says, and what contradicts.

--install makes a virtual environment in FOLDER, by default ~/.cache/grpo-kit/vllm-VERSION: vLLM's wheel (0.5 GB) and
what its import needs, without what only a GPU needs; torch is this environment's. --vllm takes another version, to see
what the next scorer would do. --record appends the summary to notes/benchmarks.md and, for the scorer's own version,
writes the answers that the tests hold the check to.
"""

import argparse
import json
import re
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections import Counter
from datetime import date
from pathlib import Path

from packaging.requirements import Requirement

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
import report

from grpo_kit.adapters.findings import fatal
from grpo_kit.adapters.scorer import ENGINE, is_dropped
from grpo_kit.nemotron import tiny
from grpo_kit.submission.inspect_zip import inspect_submission
from tests.helpers import engine
from tests.helpers.submission_cases import PACKED
from tests.helpers.submissions import CONFIG, submission

WORKER = Path(__file__).with_name("scorer_worker.py")
SCORER = ENGINE.split()[1]
# Requirements of vLLM that a LoRA manager on a CPU does not import.
LEFT_OUT = re.compile(
    r"torch|torchaudio|torchvision|torchcodec|triton|ray|numba|ninja|xgrammar|outlines.core|lm.format.enforcer|"
    r"flashinfer.*|nvidia.*|quack.kernels|tilelang|apache.tvm.ffi|tokenspeed.*|humming.*|fastsafetensors|grpcio.*|"
    r"opentelemetry.*|mcp|anthropic|model.hosting.*|kaldi.*|opencv.*"
)
LETTERS = {"linear_attention": "M", "full_attention": "*", "moe": "E"}


def install(folder: Path, version: str) -> None:
    """A virtual environment with vLLM; packages of this one, torch among them, are seen behind its own."""
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "venv", folder)
    own = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    Path(own, "behind.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(python, "-m", "pip", "install", "-q", "--no-deps", f"vllm=={version}")
    ask = "import importlib.metadata as m, json; print(json.dumps([m.requires('vllm'), m.version('torch')]))"
    lines, torch = json.loads(run(python, "-c", ask))
    needed = [
        str(requirement)
        for requirement in map(Requirement, lines)
        if not LEFT_OUT.fullmatch(requirement.name)
        and (requirement.marker is None or requirement.marker.evaluate({"extra": ""}))
    ]
    run(python, "-m", "pip", "install", "-q", f"torch=={torch.partition('+')[0]}", *needed)


def run(*words: object) -> str:
    """What a command prints; a failure ends the benchmark with its last words."""
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(
            f"{' '.join(map(str, words))[:300]} ended with status {done.returncode}:\n{done.stderr[-3000:]}"
        )
    return done.stdout


def write_base(folder: Path) -> None:
    """The embedded policy's config as the published model writes its layers."""
    fields = json.loads((tiny.FOLDER / "config.json").read_text())
    kinds = fields.pop("layers_block_type", None)
    pattern = "".join(map(LETTERS.get, kinds)) if kinds else fields["hybrid_override_pattern"]
    fields.pop("mtp_layers_block_type", None)
    fields |= {"hybrid_override_pattern": pattern, "num_hidden_layers": len(pattern), "time_step_limit": [0.0, 1e30]}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(fields))


def unpack_like_scorer(path: Path, folder: Path) -> Path | None:
    """The folder of the first config in the unpacked zip, as the scorer takes it; None where there is none."""
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    configs = sorted(folder.rglob(CONFIG))
    seen = [path for path in configs if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    return seen[0].parent if seen else None


def ask_engine(python: Path, base: Path, folders: list[Path]) -> tuple[str, list[dict]]:
    """(vLLM's version, its answer to each folder)."""
    first, *answers = map(json.loads, run(python, WORKER, base, *folders).splitlines())
    return first["vllm"], answers


def compare(python: Path, here: Path) -> tuple[str, dict[str, dict], list[dict]]:
    """(vLLM's version, its answers by case, a row of the table for each case)."""
    write_base(here / "base")
    zips, folders = {}, {}
    for number, (name, options) in enumerate(engine.case_options().items()):
        zips[name] = submission(here / f"{number}.zip", **options)
    for number, name in enumerate(PACKED):
        (here / f"packed{number}").mkdir()
        zips[name] = engine.write_packed(name, here / f"packed{number}")
    for name, path in zips.items():
        folders[name] = unpack_like_scorer(path, here / f"out{len(folders)}")
    given = {name: folder for name, folder in folders.items() if folder}
    version, raw = ask_engine(python, here / "base", list(given.values()))
    answers, rows = dict.fromkeys(zips, {"refused": "no adapter_config.json"}), []
    for (name, folder), answer in zip(given.items(), raw, strict=True):
        answers[name] = {"loaded": engine.scales(answer["loaded"], folder)} if "loaded" in answer else answer
    for name, path in zips.items():
        findings = inspect_submission(path)
        scratch = here / f"scratch{len(rows)}"
        scratch.mkdir()
        loaded = answers[name].get("loaded")
        rows.append(
            {
                "case": name,
                "vLLM": f"loads, applies {len(loaded)} parts" if loaded is not None else "refuses",
                "the check": "fatal" if fatal(findings) else "passes",
                "contradictions": " ".join(engine.contradictions(findings, path, answers[name], scratch)),
            }
        )
    return version, answers, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", default=SCORER, metavar="VERSION", help=f"default: {SCORER}, the scorer's")
    parser.add_argument("--folder", type=Path, help="the virtual environment of vLLM")
    parser.add_argument("--install", action="store_true", help="make that environment first")
    parser.add_argument("--record", action="store_true", help="append the summary, dated, to notes/benchmarks.md")
    options = parser.parse_args()
    folder = (options.folder or Path.home() / ".cache" / "grpo-kit" / f"vllm-{options.vllm}").absolute()
    if options.install:
        install(folder, options.vllm)
    python = folder / "bin" / "python"
    if not python.is_file():
        raise SystemExit(f"{python} does not exist. Add --install, or name vLLM's environment with --folder.")
    with tempfile.TemporaryDirectory() as here:
        version, answers, rows = compare(python, Path(here))
    if version != options.vllm:
        raise SystemExit(f"{folder} holds vLLM {version}, not {options.vllm}. Add --vllm {version}.")
    report.finish("scorer_engine, all cases", rows, {"vllm": version}, False)
    figures = {"vllm": version, "cases": len(rows), "shared_experts_used": has_shared(answers["shared experts alone"])}
    if version == SCORER:
        wrong = [bool(row["contradictions"]) for row in rows]
        summary = Counter((row["vLLM"].partition(",")[0], row["the check"], no) for row, no in zip(rows, wrong))
        table = [
            {"vLLM": did, "the check": says, "contradiction": "yes" if no else "no", "cases": number}
            for (did, says, no), number in sorted(summary.items())
        ]
        figures["contradictions"] = sum(wrong)
        if options.record:
            write_record(version, answers)
    else:
        table = compare_versions(version, answers)
    report.finish("scorer_engine", table, figures, options.record)


def has_shared(answer: dict) -> bool:
    return any(map(is_dropped, answer.get("loaded", ())))


def write_record(version: str, answers: dict[str, dict]) -> None:
    lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(answer)}" for name, answer in answers.items())
    head = f'{{\n  "vllm": "{version}",\n  "date": "{date.today()}",\n  "answers": {{\n'
    engine.RECORD.write_text(f"{head}{lines}\n  }}\n}}\n")


def compare_versions(version: str, answers: dict[str, dict]) -> list[dict]:
    """A row for each kind of submission that this version treats otherwise than the scorer's, shared experts aside."""
    recorded, rows = engine.recorded_answers(), []
    for name in answers.keys() & recorded.keys():
        sides = [side.get("loaded") for side in (recorded[name], answers[name])]
        if None not in sides:
            sides = [{part: scale for part, scale in side.items() if not is_dropped(part)} for side in sides]
        if sides[0] != sides[1]:
            old, new = (describe(side, other) for side, other in (sides, sides[::-1]))
            rows.append({"case": name, SCORER: old, version: new})
    shared = sum(has_shared(answer) for answer in answers.values())
    was = sum(has_shared(answer) for answer in recorded.values())
    row = {"case": "LoRA on shared experts", SCORER: f"applied in {was} cases", version: f"applied in {shared} cases"}
    return [row, *sorted(rows, key=lambda row: row["case"])]


def describe(side: dict | None, other: dict | None) -> str:
    """What one version does, and with which scales where the other loads it too."""
    if side is None:
        return "refuses"
    if other is None:
        return "loads"
    changed = Counter(scale for part, scale in side.items() if other.get(part, "absent") != scale)
    return ", ".join(f"scales {number} parts by {scale}" for scale, number in changed.items()) or "ignores a part"


if __name__ == "__main__":
    main()
