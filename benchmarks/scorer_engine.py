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
from grpo_kit.adapters.scorer import ENGINE
from grpo_kit.nemotron import tiny
from grpo_kit.submission.inspect_zip import inspect_submission
from tests.helpers import engine
from tests.helpers.submission_cases import PACKED
from tests.helpers.submissions import CONFIG, submission

ROOT = Path(__file__).resolve().parents[1]
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
    pip = [python, "-m", "pip", "install", "-q"]
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout.strip()
    Path(own, "behind.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run([*pip, "--no-deps", f"vllm=={version}"], check=True)
    ask = "import importlib.metadata as m, json; print(json.dumps([m.requires('vllm'), m.version('torch')]))"
    asked = subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout
    lines, torch = json.loads(asked)
    needed = [Requirement(line) for line in lines]
    needed = [
        str(requirement)
        for requirement in needed
        if not LEFT_OUT.fullmatch(requirement.name)
        and (requirement.marker is None or requirement.marker.evaluate({"extra": ""}))
    ]
    subprocess.run([*pip, f"torch=={torch.partition('+')[0]}", *needed], check=True)


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
    call = [python, ROOT / "benchmarks" / "scorer_worker.py", base, *folders]
    done = subprocess.run(list(map(str, call)), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"vLLM ended with status {done.returncode}:\n{done.stderr[-3000:]}")
    first, *answers = map(json.loads, done.stdout.splitlines())
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
    summary = Counter((row["vLLM"].partition(",")[0], row["the check"], bool(row["contradictions"])) for row in rows)
    table = [
        {"vLLM": did, "the check": says, "cases": number, "contradictions": number if wrong else 0}
        for (did, says, wrong), number in sorted(summary.items())
    ]
    shared = answers["shared experts alone"].get("loaded") or {}
    figures = {
        "vllm": version,
        "cases": len(rows),
        "contradictions": sum(bool(row["contradictions"]) for row in rows),
        "shared_experts_used": any("shared_experts" in part for part in shared),
    }
    if options.record and version == SCORER:
        lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(answer)}" for name, answer in answers.items())
        head = f'{{\n  "vllm": "{version}",\n  "date": "{date.today()}",\n  "answers": {{\n'
        engine.RECORD.write_text(f"{head}{lines}\n  }}\n}}\n")
    report.finish("scorer_engine", table, figures, options.record)


if __name__ == "__main__":
    main()
