"""The scorer's engine beside the check: what vLLM did with each kind of submission, and where the check contradicts it.

`benchmarks/scorer_engine.py --record` writes the answers; `tests/submission` holds the check to them.
"""

import json
import math
import re
from collections import defaultdict
from pathlib import Path

from grpo_kit.adapters import scorer
from grpo_kit.adapters.adapter_config import CONFIG_FILE, TENSORS_FILE, read_adapter_config
from grpo_kit.adapters.findings import Refused, fatal
from grpo_kit.submission.inspect_zip import unpack_adapter
from grpo_kit.submission.package import pack_folders
from grpo_kit.submission.tensor_names import scorer_place
from tests.helpers.submission_cases import FATAL, PACKED, SOUND, WARNING
from tests.helpers.submissions import submission

RECORD = Path(__file__).resolve().parents[1] / "submission" / "scorer_engine.json"
# Findings that are fatal although vLLM applies all pairs that it can place, with the config's scale; and why.
MISTAKES = {
    "dead-all": "nothing was trained",
    "dead-pairs": "some modules were not trained",
    "dtype": "the numbers had a scale that is gone",
    "keys-stacked": "the stack's update is lost",
    "keys-twice": "one of two pairs is lost",
    "layer-replication": "other layers were trained",
    "nothing-used": "nothing of it reaches the scorer",
    "shape": "a narrower update is applied to other inputs than it was trained on",
    "shape-rank": "the config says another rank, and so another scale, than the pair was trained with",
    "tensors-missing": "something was trained and not saved",
    "zero-size": "an empty pair does nothing",
}


def case_options():
    """{name: arguments of `submission`} of all kinds but those for another base, which would need its own model."""
    cases = {name: options for kinds in (FATAL, WARNING) for name, (options, _) in kinds.items()} | SOUND
    return {name: o for name, o in cases.items() if "base_model_name_or_path" not in o.get("change", {})}


def write_packed(name, folder):
    """The zip that the packer makes of an adapter; `folder` is empty before."""
    options, settings = PACKED[name]
    source = folder / "source"
    source.mkdir()
    unpack_adapter(submission(folder / "source.zip", **options), source)
    pack_folders([source], "tiny", folder / "submission.zip", **settings)
    return folder / "submission.zip"


def pair_norms(folder):
    """{module, routed experts as one: (norm of A, norm of B)} of the pairs in a file; NaN if one is missing."""
    from safetensors.torch import load_file

    squares = defaultdict(dict)
    for key, tensor in load_file(folder / TENSORS_FILE).items():
        if place := scorer_place(key):
            halves = squares[re.sub(r"\.experts\.\d+\.", ".experts.", place[0])]
            halves[place[1]] = halves.get(place[1], 0) + tensor.double().square().sum().item()
    return {part: tuple(math.sqrt(halves.get(half, math.nan)) for half in "AB") for part, halves in squares.items()}


def scales(loaded, folder):
    """{module: what vLLM multiplies its B A with} of the pairs that change something; None where that is not finite."""
    saved, found = pair_norms(folder), {}
    for part, (a, b) in loaded.items():
        if product := a * b:
            scale = product / math.prod(saved[part])
            found[part] = float(f"{scale:.3g}") if math.isfinite(scale) else None
    return found


def expected_scales(folder):
    """What `scales` gives if vLLM applies every pair that it does not drop with the config's scale; None if invalid."""
    scale = read_adapter_config(folder / CONFIG_FILE).scorer_scale
    used = {part: a * b for part, (a, b) in pair_norms(folder).items() if not scorer.is_dropped(part)}
    return {part: scale for part, product in used.items() if product} if scale else None


def same_scales(found, expected):
    return found.keys() == expected.keys() and all(
        scale is not None and math.isclose(scale, abs(expected[part]), rel_tol=0.01) for part, scale in found.items()
    )


def contradictions(findings, path, answer, scratch):
    """Sentences on what the check's findings about a zip say otherwise than the engine did.

    Args:
        findings: of `inspect_submission`.
        path: the zip.
        answer: {"refused": why} or {"loaded": scales}.
        scratch: an empty folder.
    """
    stops, says = fatal(findings), [finding.scorer for finding in findings]
    if "refused" in answer:
        wrong = [] if stops else ["the check passes it, and vLLM refuses it"]
        return wrong if any("fail" in sentence for sentence in says) else [*wrong, "no finding says that it fails"]
    # vLLM's mixer reads the convolution's weight itself, so a LoRA in its buffers changes nothing.
    loaded = {part: scale for part, scale in answer["loaded"].items() if not part.endswith("conv1d")}
    wrong = [f"vLLM loads it: {sentence}" for sentence in says if "will fail" in sentence]
    if loaded:
        wrong += [f"vLLM applies pairs: {sentence}" for sentence in says if "the score is the base's" in sentence]
    try:
        unpack_adapter(path, scratch)
    except Refused:  # a matter of the zip, not of the adapter
        return wrong
    expected = expected_scales(scratch)
    if expected is not None and same_scales(loaded, expected):
        wrong += [f"vLLM applies all of it: {finding.what}" for finding in stops if finding.code not in MISTAKES]
    elif not stops:
        wrong.append(f"the check passes it, and vLLM applies {loaded} instead of {expected}")
    return wrong


def recorded_answers():
    return json.loads(RECORD.read_text())["answers"]
