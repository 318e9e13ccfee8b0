"""Check broken submissions and watch the process: python -m tests.helpers.fuzz_inspection COUNT FOLDER [SEED]

The last line is JSON: the number of cases, of kinds of findings and of cases without a fatal finding, the processor
seconds of the slowest case, the MiB by which memory grew, and the files that the check wrote outside its temporary
folder or left in it. An exception ends the run with a traceback.
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
from tests.helpers.submissions import CONFIG, TENSORS, config, shapes_of, tensors, write_zip

CONFIG_FIELDS = config()
SAVED = save(tensors(CONFIG_FIELDS))


def make_zip(fields, saved, compression=zipfile.ZIP_STORED):
    data = io.BytesIO()
    write_zip(data, {CONFIG: fields, TENSORS: saved}, compression)
    return data.getvalue()


def mutate(rng, data, most=8):
    data = bytearray(data)
    for _ in range(rng.randint(1, most)):
        at, length = rng.randrange(len(data) + 1), rng.choice((0, 1, 1, 1, 2, 4, 50))
        data[at : at + length] = rng.choice(
            (b"", b"\xff" * length, bytes(length), rng.randbytes(length), b'"', b"9", b"[", b"PK\1\2")
        )
    return bytes(data)


def mutate_structure(rng, data):
    """The data of a zip with bytes changed in its structure: in the last 200 and the first 100 bytes."""
    return mutate(rng, data[:100], 2) + data[100:-200] + mutate(rng, data[-200:], 3)


def mutate_header(rng):
    length = int.from_bytes(SAVED[:8], "little")
    text = mutate(rng, SAVED[8 : 8 + length], 3)
    claimed = rng.choice((len(text), len(text), len(text), rng.randrange(1 << 40), 0, (1 << 64) - 1))
    return make_zip(CONFIG_FIELDS, claimed.to_bytes(8, "little") + text + SAVED[8 + length :])


def mutate_fields(rng):
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
    changed = dict(CONFIG_FIELDS)
    for _ in range(rng.randint(1, 6)):
        changed[rng.choice([*changed, "unheard_of"])] = rng.choice(odd)
    return make_zip(json.dumps(changed), SAVED)


def invent_entries(rng):
    """A header with invented entries: any names, types, shapes and offsets."""
    names = [*shapes_of(CONFIG_FIELDS, base_models.lora_modules("tiny"))]
    lines, end = {}, 0
    for _ in range(rng.randint(0, 40)):
        dtype, size = rng.choice([("F32", 4), ("BF16", 2), ("I8", 1), ("F64", 8), ("F4", 0.5)])
        shape = [rng.choice((0, 1, 2, 4, 128, 4)) for _ in range(rng.choice((0, 1, 2, 2, 2, 3)))]
        bytes_ = int(size * math.prod(shape))
        name = rng.choice(names) if rng.random() < 0.8 else mutate(rng, rng.choice(names).encode()).decode("latin-1")
        lines[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + bytes_]}
        end += bytes_ if rng.random() < 0.99 else 1
    text = json.dumps(lines).encode()
    return make_zip(CONFIG_FIELDS, len(text).to_bytes(8, "little") + text + rng.randbytes(end))


def make_costly(rng):
    """A submission that is built to cost time or memory."""
    long_list = b"[" + b"{}," * 1_300_000 + b"0]"
    deep = rng.choice((b"[", b'{"a":')) * rng.choice((500, 900, 990, 5000, 100_000))
    tensor = b'{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    heads = (
        b'{"a":' + long_list, deep, b"{" + b",".join(b'"%d":%s' % (i, tensor) for i in range(60_000)) + b"}",
        b'{"' + b"x" * 4_000_000 + b'":' + tensor + b"}", b'{"a":' + b"9" * 4_000_000 + b"}",
        b'{"base_model.model.' + b".lora_A" * 500_000 + b'.weight":' + tensor + b"}",
    )  # fmt: skip
    configs = (
        b"[" * 500_000,
        deep,
        long_list[:1_000_000],
        json.dumps(CONFIG_FIELDS | {"r": 4, "x": "y" * 900_000}),
        b'{"r":' + b"9" * 900_000 + b"}",
    )
    if rng.random() < 0.3:
        return make_zip(rng.choice(configs), SAVED, zipfile.ZIP_DEFLATED)
    if rng.random() < 0.2:
        return make_zip(CONFIG_FIELDS, bytes(63 << 20), zipfile.ZIP_DEFLATED)
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
    return make_zip(CONFIG_FIELDS, len(head).to_bytes(8, "little") + head, zipfile.ZIP_DEFLATED)


def make_case(rng):
    sound = make_zip(CONFIG_FIELDS, SAVED, rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))
    kinds = (
        lambda: rng.randbytes(rng.choice((0, 1, 22, 100, 10_000))),
        lambda: b"PK\3\4" + rng.randbytes(200),
        lambda: sound[: rng.randrange(len(sound))],
        lambda: sound[rng.randrange(len(sound)) :],
        lambda: mutate(rng, sound),
        *[lambda: mutate_structure(rng, sound), lambda: mutate_header(rng)] * 2,
        *[lambda: mutate_fields(rng), lambda: invent_entries(rng)] * 2,
        lambda: make_zip(mutate(rng, json.dumps(CONFIG_FIELDS).encode()), SAVED),
        lambda: make_zip(CONFIG_FIELDS, mutate(rng, SAVED)),
        lambda: make_costly(rng) if rng.random() < 0.3 else sound,
    )
    return rng.choice(kinds)()


def main(count, folder, seed=1):
    # A temporary folder of its own, because other processes may check submissions at the same time.
    tempfile.tempdir = tempfile.mkdtemp(dir=folder)
    path, codes, without_fatal, slowest, written_files = Path(folder, "submission.zip"), set(), 0, 0.0, []
    is_checking, scratch = False, str(Path(tempfile.gettempdir(), "grpo-kit-"))

    def watch(event, args):
        if (
            is_checking
            and event == "open"
            and isinstance(args[2], int)
            and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            and not str(args[0]).startswith(scratch)
        ):
            written_files.append(str(args[0]))

    for base in ("tiny", base_models.PUBLISHED):
        base_models.lora_modules(base)
    sys.addaudithook(watch)
    most = 0
    for number in range(count):
        path.write_bytes(make_case(random.Random(f"{seed} {number}")))
        reset_peak()
        before = rss("VmRSS")
        is_checking, started = True, time.process_time()
        findings = inspect_zip.inspect_submission(path)
        is_checking, seconds = False, time.process_time() - started
        most, slowest = max(most, rss("VmHWM") - before), max(slowest, seconds)
        written_files += map(str, Path(tempfile.gettempdir()).glob("grpo-kit-*"))  # must be gone by now
        codes |= {finding.code for finding in findings}
        without_fatal += not fatal(findings)
    print(json.dumps({
        "cases": count, "findings": len(codes), "passed": without_fatal, "slowest_cpu_s": round(slowest, 2),
        "mebibytes": round(most),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, "written": written_files,
    }))  # fmt: skip


def rss(field):
    """VmRSS, or VmHWM (the peak since the last reset), in MiB."""
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{field}:")[1].split()[0]) / 1024


def reset_peak():
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], *sys.argv[3:])
