"""A header is read exactly where the safetensors library reads it; what is written, the library reads back."""

import io
import json
import random

import pytest
import safetensors
import torch
from safetensors.torch import load, save

from grpo_kit.adapters import safetensors_files
from grpo_kit.adapters.findings import Refused


def read(tmp_path, data):
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(data)
    return safetensors_files.read_header(path)


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
def test_a_broken_file_is_refused(tmp_path, name):
    with pytest.raises(Refused) as refused:
        read(tmp_path, BROKEN[name])
    assert refused.value.finding.code == "not-safetensors" and refused.value.finding.what.isprintable()


def test_a_sound_file_is_read(tmp_path):
    assert list(read(tmp_path, SOUND)) == ["a", "b"]
    assert read(tmp_path, made({})) == {}
    padded = made(json.dumps({"a": line()}).encode() + b"   ", bytes(4))
    entry = read(tmp_path, padded)["a"]
    assert entry == ("F32", (1,), len(padded) - 4, len(padded))


def test_tensors_come_in_the_order_of_their_bytes(tmp_path):
    header = {"a": line(offsets=(4, 8)), "b": line(offsets=(0, 4))}
    assert list(read(tmp_path, made(header, bytes(8)))) == ["b", "a"]


def test_a_header_too_large_to_be_true_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_files, "LARGEST_HEADER", 10)
    with pytest.raises(Refused, match="header claims"):
        read(tmp_path, SOUND)


def test_more_tensors_than_an_adapter_can_have_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_files, "MOST_TENSORS", 1)
    with pytest.raises(Refused, match="holds 2 tensors") as refused:
        read(tmp_path, SOUND)
    assert refused.value.finding.code == "too-many-tensors"


def test_whatever_the_library_refuses_is_refused_and_what_it_reads_is_read(tmp_path):
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
            read(tmp_path, bytes(data))
            ours = True
        except Refused as refused:
            ours = "twice" in str(refused) and theirs
        assert ours == theirs, bytes(data)
        seen[theirs] += 1
    assert min(seen.values()) > 20, seen


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_tensor_is_read_in_pieces(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(safetensors_files, "PIECE", 64)
    values = torch.arange(99).to(dtype)
    entries = read(tmp_path, save({"a": torch.ones(3), "b": values, "c": torch.empty(0)}))
    with (tmp_path / "adapter_model.safetensors").open("rb") as file:
        pieces = list(safetensors_files.read_pieces(file, entries["b"]))
        assert torch.equal(torch.cat(pieces), values) and len(pieces) > 3 and max(p.nbytes for p in pieces) <= 64
        assert list(safetensors_files.read_pieces(file, entries["c"])) == []


def test_the_library_reads_what_was_written():
    tensors = {
        "a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, 2).T.to(torch.bfloat16), "c": torch.tensor([True, False]),
        "d": torch.ones(5).to(torch.float8_e4m3fn), "e": torch.arange(3), "f": torch.empty(0, 4),
        "g": torch.tensor(7.0),
    }  # fmt: skip
    kinds = {
        torch.float32: "F32",
        torch.bfloat16: "BF16",
        torch.bool: "BOOL",
        torch.float8_e4m3fn: "F8_E4M3",
        torch.int64: "I64",
    }
    target = io.BytesIO()
    entries = {name: (kinds[tensor.dtype], tensor.shape) for name, tensor in tensors.items()}
    size = safetensors_files.write_safetensors(target, entries, iter(tensors.values()))
    back = load(target.getvalue())
    assert size == sum(tensor.nbytes for tensor in tensors.values())
    assert {n: (t.dtype, t.tolist()) for n, t in back.items()} == {n: (t.dtype, t.tolist()) for n, t in tensors.items()}
