"""The stream reads what the safetensors library reads, and refuses what it refuses."""

import io
import json
import random

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import save

from grpo_kit.submission import safetensors_reader
from grpo_kit.submission.findings import Refused


def read(data):
    file = io.BytesIO(data)
    entries = safetensors_reader.read_header(file, len(data))
    return {entry.name: value for entry, value in safetensors_reader.read_values(file, entries)}


def made(header, body=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


def line(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


SOUND = made({"a": line(), "b": line("F16", (2, 1), (4, 8)), "__metadata__": {"format": "pt"}}, bytes(8))
BROKEN = {
    "nothing": b"",
    "seven bytes": bytes(7),
    "a header longer than the file": made({}, length=3),
    "a header of exabytes": made({}, length=2**63),
    "no JSON": made(b"{oh"),
    "not UTF-8": made(b'{"\xff": 1}'),
    "a list": made(b"[]"),
    "a blank first": made(b' {"a":1}'),
    "a name twice": made(b'{"a":%s,"a":%s}' % ((json.dumps(line()).encode(),) * 2), bytes(4)),
    "nested without end": made(b"[" * 100_000),
    "objects without end": made(b'{"a":' * 50_000),
    "NaN": made(b'{"a":NaN}'),
    "metadata of numbers": made({"__metadata__": {"a": 1}}),
    "a number for a tensor": made({"a": 1}),
    "a type nobody has": made({"a": line("Q4")}, bytes(4)),
    "a type that is a list": made({"a": line(["F32"])}, bytes(4)),
    "a shape of text": made({"a": line(shape=("1",))}, bytes(4)),
    "a shape of fractions": made({"a": line(shape=(1.0,))}, bytes(4)),
    "a negative shape": made({"a": line(shape=(-1, -1))}, bytes(4)),
    "a shape of truth": made({"a": line(shape=(True,))}, bytes(4)),
    "a shape beyond counting": made({"a": line(shape=(2**62, 2**62))}, bytes(4)),
    "a shape that overflows to what is there": made({"a": line(shape=(2**63 + 1, 2))}, bytes(4)),
    "one offset": made({"a": line(offsets=(0,))}, bytes(4)),
    "offsets the wrong way": made({"a": line(offsets=(4, 0))}, bytes(4)),
    "fewer bytes than the shape": made({"a": line(shape=(2,))}, bytes(4)),
    "a gap": made({"a": line(), "b": line(offsets=(8, 12))}, bytes(12)),
    "an overlap": made({"a": line(), "b": line(offsets=(2, 6))}, bytes(6)),
    "the same place twice": made({"a": line(), "b": line()}, bytes(4)),
    "bytes before": made({"a": line(offsets=(4, 8))}, bytes(8)),
    "bytes behind": made({"a": line()}, bytes(5)),
    "bytes missing": made({"a": line()}, bytes(3)),
    "beyond the end": made({"a": line(offsets=(1 << 40, (1 << 40) + 4))}, bytes(4)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused(name):
    with pytest.raises(Refused) as refused:  # by its header alone, before a value is read
        safetensors_reader.read_header(io.BytesIO(BROKEN[name]), len(BROKEN[name]))
    assert refused.value.finding.code == "not-safetensors" and refused.value.finding.what.isprintable()


def test_a_sound_file_is_read():
    assert list(read(SOUND)) == ["a", "b"]
    assert read(made({})) == {}
    assert list(read(made(json.dumps({"a": line()}).encode() + b"   ", bytes(4)))) == ["a"]  # padded, as files are


def test_a_header_too_large_to_be_true_is_refused(monkeypatch):
    monkeypatch.setattr(safetensors_reader, "LARGEST_HEADER", 10)
    with pytest.raises(Refused, match="header claims"):
        read(SOUND)


def test_whatever_the_library_refuses_is_refused_and_what_it_reads_is_read():
    """Two thousand headers with one or two bytes or numbers changed; only names twice are refused by us alone."""
    rng, seen = random.Random(7), {True: 0, False: 0}
    for _ in range(2000):
        data = bytearray(SOUND)
        for _ in range(rng.randint(1, 2)):
            at = rng.randrange(len(data))
            data[at : at + rng.choice((0, 1, 1, 2))] = rng.choice(
                (b"", b"0", b"9", b'"', b"[", bytes([rng.randrange(256)]))
            )
        try:
            safetensors.deserialize(bytes(data))
            theirs = True
        except Exception:
            theirs = False
        try:
            read(bytes(data))
            ours = True
        except Refused as refused:
            ours = "twice" in str(refused) and theirs
        assert ours == theirs, bytes(data)
        seen[theirs] += 1
    assert min(seen.values()) > 20, seen


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("values", "zero", "finite", "largest"),
    [
        ([0.0, -0.0, 0.0], True, True, 0.0),
        ([0.0, -2.5, 1.0], False, True, 2.5),
        ([1.0, float("nan")], False, False, None),
        ([1.0, float("-inf")], False, False, float("inf")),
        ([2.0**-14], False, True, 2.0**-14),
        ([], True, True, 0.0),
    ],
)
def test_values_are_seen_in_every_type(dtype, values, zero, finite, largest):
    found = read(save({"a": torch.tensor(values, dtype=dtype)}))["a"]
    assert (found.zero, found.finite) == (zero, finite)
    assert np.isnan(found.largest) if largest is None else found.largest == largest


def test_a_value_is_seen_in_every_piece_of_a_large_tensor(monkeypatch):
    monkeypatch.setattr(safetensors_reader, "PIECE", 64)
    for at in (0, 31, 32, 33, 99):
        value = torch.zeros(100, dtype=torch.bfloat16)
        value[at] = -3
        assert read(save({"a": value, "b": torch.zeros(100)}))["a"].largest == 3
    assert read(save({"a": torch.zeros(100), "b": value}))["a"].zero


def test_types_that_are_no_floats_have_no_values():
    assert read(save({"a": torch.ones(3, dtype=torch.int8), "b": torch.ones(1)}))["a"] is None
