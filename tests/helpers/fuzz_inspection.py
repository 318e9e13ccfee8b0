"""Throw broken submissions at the check and watch the process: python -m tests.helpers.fuzz_inspection COUNT FOLDER
[SEED]

The last line is JSON: cases, kinds of findings seen, cases without a fatal one, processor seconds of the slowest, MiB
that memory grew by, and files that the check wrote outside of its temporary folder, or left there. An exception ends it
with a trace.
"""

import io
import json
import math
import os
import random
import resource
import struct
import sys
import tempfile
import time
import zipfile
import zlib
from pathlib import Path

from safetensors.numpy import save

from grpo_kit.adapters.findings import fatal
from grpo_kit.nemotron import base_models
from grpo_kit.submission import inspect_zip
from tests.helpers.submissions import CONFIG, TENSORS, config, shapes_of, tensors, write

SAID = config()
SAVED = save(tensors(SAID))


def zipped(said, saved, how=zipfile.ZIP_STORED):
    data = io.BytesIO()
    write(data, {CONFIG: said, TENSORS: saved}, how)
    return data.getvalue()


def mutated(rng, data, most=8):
    data = bytearray(data)
    for _ in range(rng.randint(1, most)):
        at, length = rng.randrange(len(data) + 1), rng.choice((0, 1, 1, 1, 2, 4, 50))
        data[at : at + length] = rng.choice(
            (b"", b"\xff" * length, bytes(length), rng.randbytes(length), b'"', b"9", b"[", b"PK\1\2")
        )
    return bytes(data)


def structure(rng, whole):
    """Bytes changed where a zip says what it is: its last 200, and the first 100."""
    return mutated(rng, whole[:100], 2) + whole[100:-200] + mutated(rng, whole[-200:], 3)


def header(rng):
    length = int.from_bytes(SAVED[:8], "little")
    text = mutated(rng, SAVED[8 : 8 + length], 3)
    claimed = rng.choice((len(text), len(text), len(text), rng.randrange(1 << 40), 0, (1 << 64) - 1))
    return zipped(SAID, claimed.to_bytes(8, "little") + text + SAVED[8 + length :])


def fields(rng):
    """A config with values of every type in every field."""
    odd = (
        None,
        True,
        0,
        -1,
        1e308,
        10**400,
        "",
        "x" * 1000,
        "\ud800",
        [],
        [[]],
        {},
        {"a": []},
        [1],
        float("nan"),
        "4",
        {"q_proj": 10**30},
    )
    said = dict(SAID)
    for _ in range(rng.randint(1, 6)):
        said[rng.choice([*said, "unheard_of"])] = rng.choice(odd)
    return zipped(json.dumps(said), SAVED)


def entries(rng):
    """A header whose lines are made up: any names, types, shapes and places."""
    names = [*shapes_of(SAID, base_models.lora_modules("tiny"))]
    lines, end = {}, 0
    for _ in range(rng.randint(0, 40)):
        dtype, size = rng.choice([("F32", 4), ("BF16", 2), ("I8", 1), ("F64", 8), ("F4", 0.5)])
        shape = [rng.choice((0, 1, 2, 4, 128, 4)) for _ in range(rng.choice((0, 1, 2, 2, 2, 3)))]
        bytes_ = int(size * math.prod(shape))
        name = rng.choice(names) if rng.random() < 0.8 else mutated(rng, rng.choice(names).encode()).decode("latin-1")
        lines[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + bytes_]}
        end += bytes_ if rng.random() < 0.99 else 1
    text = json.dumps(lines).encode()
    return zipped(SAID, len(text).to_bytes(8, "little") + text + rng.randbytes(end))


def hostile(rng):
    """What is made to cost time or memory."""
    many = b"[" + b"{}," * 1_300_000 + b"0]"
    deep = rng.choice((b"[", b'{"a":')) * rng.choice((500, 900, 990, 5000, 100_000))
    tensor = b'{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    heads = (
        b'{"a":' + many, deep, b"{" + b",".join(b'"%d":%s' % (i, tensor) for i in range(60_000)) + b"}",
        b'{"' + b"x" * 4_000_000 + b'":' + tensor + b"}", b'{"a":' + b"9" * 4_000_000 + b"}",
        b'{"base_model.model.' + b".lora_A" * 500_000 + b'.weight":' + tensor + b"}",
    )  # fmt: skip
    configs = (
        b"[" * 500_000,
        deep,
        many[:1_000_000],
        json.dumps(SAID | {"r": 4, "x": "y" * 900_000}),
        b'{"r":' + b"9" * 900_000 + b"}",
    )
    if rng.random() < 0.3:
        return zipped(rng.choice(configs), SAVED, zipfile.ZIP_DEFLATED)
    if rng.random() < 0.2:
        return zipped(SAID, bytes(63 << 20), zipfile.ZIP_DEFLATED)
    if rng.random() < 0.2:  # a directory of megabytes
        data, central = (
            io.BytesIO(),
            struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 33, zlib.crc32(b""), 0, 0, 1, 0, 0, 0, 0, 0, 0),
        )
        data.write((central + b"a") * 100_000)
        size = data.tell()
        data.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, size, 0, 0))
        return data.getvalue()
    head = rng.choice(heads)
    return zipped(SAID, len(head).to_bytes(8, "little") + head, zipfile.ZIP_DEFLATED)


def case(rng):
    whole = zipped(SAID, SAVED, rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))
    kinds = (
        lambda: rng.randbytes(rng.choice((0, 1, 22, 100, 10_000))), lambda: b"PK\3\4" + rng.randbytes(200),
        lambda: whole[: rng.randrange(len(whole))], lambda: whole[rng.randrange(len(whole)) :],
        lambda: mutated(rng, whole),
        lambda: structure(rng, whole), lambda: structure(rng, whole), lambda: header(rng), lambda: header(rng),
        lambda: fields(rng), lambda: fields(rng), lambda: entries(rng), lambda: entries(rng),
        lambda: zipped(mutated(rng, json.dumps(SAID).encode()), SAVED), lambda: zipped(SAID, mutated(rng, SAVED)),
        lambda: hostile(rng) if rng.random() < 0.3 else whole,
    )  # fmt: skip
    return rng.choice(kinds)()


def main(count, folder, seed=1):
    tempfile.tempdir = tempfile.mkdtemp(dir=folder)  # of our own, as others may check submissions at the same time
    path, seen, passed, slowest, written = Path(folder, "submission.zip"), set(), 0, 0.0, []
    watching, scratch = False, str(Path(tempfile.gettempdir(), "grpo-kit-"))

    def watch(event, args):
        if (
            watching
            and event == "open"
            and isinstance(args[2], int)
            and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            and not str(args[0]).startswith(scratch)
        ):
            written.append(str(args[0]))

    for base in ("tiny", base_models.PUBLISHED):
        base_models.lora_modules(base)
    sys.addaudithook(watch)
    most = 0
    for number in range(count):
        path.write_bytes(case(random.Random(f"{seed} {number}")))
        reset_peak()
        before = rss("VmRSS")
        watching, started = True, time.process_time()
        findings = inspect_zip.inspect_submission(path)
        watching, seconds = False, time.process_time() - started
        most, slowest = max(most, rss("VmHWM") - before), max(slowest, seconds)
        written += map(str, Path(tempfile.gettempdir()).glob("grpo-kit-*"))  # must be gone by now
        seen |= {finding.code for finding in findings}
        passed += not fatal(findings)
    print(json.dumps({
        "cases": count, "findings": len(seen), "passed": passed, "slowest_cpu_s": round(slowest, 2),
        "mebibytes": round(most),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, "written": written,
    }))  # fmt: skip


def rss(which):
    """VmRSS, or VmHWM, the peak since it was last set back, in MiB."""
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{which}:")[1].split()[0]) / 1024


def reset_peak():
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], *sys.argv[3:])
