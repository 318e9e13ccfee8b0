"""Headers are accepted exactly where the safetensors library accepts them; the library reads what is written here."""

import io
import json
import random

import pytest
import safetensors
import torch
from safetensors.torch import load, save

from grpo_kit.adapters import safetensors_files
from grpo_kit.adapters.findings import Refused


def read_header(tmp_path, data):
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(data)
    return safetensors_files.read_header(path)


def file_with_header(header, body=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


SOUND = file_with_header({"a": entry(), "b": entry("F16", (2, 1), (4, 8)), "__metadata__": {"format": "pt"}}, bytes(8))
BROKEN = {
    "nothing": b"",
    "seven bytes": bytes(7),
    "a header longer than the file": file_with_header({}, length=3),
    "a header of exabytes": file_with_header({}, length=2**63),
    "no JSON": file_with_header(b"{oh"),
    "not UTF-8": file_with_header(b'{"\xff": 1}'),
    "a list": file_with_header(b"[]"),
    "a blank first": file_with_header(b' {"a":1}'),
    "a name twice": file_with_header(b'{"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2), bytes(4)),
    "nested without end": file_with_header(b"[" * 100_000),
    "objects without end": file_with_header(b'{"a":' * 50_000),
    "NaN": file_with_header(b'{"a":NaN}'),
    "metadata of numbers": file_with_header({"__metadata__": {"a": 1}}),
    "a number for a tensor": file_with_header({"a": 1}),
    "an unknown type": file_with_header({"a": entry("Q4")}, bytes(4)),
    "a type that is a list": file_with_header({"a": entry(["F32"])}, bytes(4)),
    "a shape of text": file_with_header({"a": entry(shape=("1",))}, bytes(4)),
    "a shape of fractions": file_with_header({"a": entry(shape=(1.0,))}, bytes(4)),
    "a negative shape": file_with_header({"a": entry(shape=(-1, -1))}, bytes(4)),
    "a shape of booleans": file_with_header({"a": entry(shape=(True,))}, bytes(4)),
    "a shape whose size overflows": file_with_header({"a": entry(shape=(2**62, 2**62))}, bytes(4)),
    "a shape whose overflowed size fits": file_with_header({"a": entry(shape=(2**63 + 1, 2))}, bytes(4)),
    "one offset": file_with_header({"a": entry(offsets=(0,))}, bytes(4)),
    "offsets the wrong way": file_with_header({"a": entry(offsets=(4, 0))}, bytes(4)),
    "fewer bytes than the shape": file_with_header({"a": entry(shape=(2,))}, bytes(4)),
    "a gap": file_with_header({"a": entry(), "b": entry(offsets=(8, 12))}, bytes(12)),
    "an overlap": file_with_header({"a": entry(), "b": entry(offsets=(2, 6))}, bytes(6)),
    "the same place twice": file_with_header({"a": entry(), "b": entry()}, bytes(4)),
    "bytes before": file_with_header({"a": entry(offsets=(4, 8))}, bytes(8)),
    "bytes behind": file_with_header({"a": entry()}, bytes(5)),
    "bytes missing": file_with_header({"a": entry()}, bytes(3)),
    "beyond the end": file_with_header({"a": entry(offsets=(1 << 40, (1 << 40) + 4))}, bytes(4)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused(tmp_path, name):
    with pytest.raises(Refused) as refused:
        read_header(tmp_path, BROKEN[name])
    assert refused.value.finding.code == "not-safetensors" and refused.value.finding.what.isprintable()


def test_a_sound_file_is_read(tmp_path):
    assert list(read_header(tmp_path, SOUND)) == ["a", "b"]
    assert read_header(tmp_path, file_with_header({})) == {}
    padded = file_with_header(json.dumps({"a": entry()}).encode() + b"   ", bytes(4))
    tensor_entry = read_header(tmp_path, padded)["a"]
    assert tensor_entry == ("F32", (1,), len(padded) - 4, len(padded))


def test_tensors_are_listed_in_the_order_of_their_data(tmp_path):
    header = {"a": entry(offsets=(4, 8)), "b": entry(offsets=(0, 4))}
    assert list(read_header(tmp_path, file_with_header(header, bytes(8)))) == ["b", "a"]


def test_a_header_beyond_the_size_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_files, "LARGEST_HEADER", 10)
    with pytest.raises(Refused, match="header claims"):
        read_header(tmp_path, SOUND)


def test_more_tensors_than_an_adapter_can_have_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_files, "MOST_TENSORS", 1)
    with pytest.raises(Refused, match="holds 2 tensors") as refused:
        read_header(tmp_path, SOUND)
    assert refused.value.finding.code == "too-many-tensors"


@pytest.mark.slow
def test_the_same_files_are_accepted_and_refused_as_by_the_library(tmp_path):
    """2000 headers with one or two changes. Only a name that occurs twice is refused by the kit alone."""
    rng, counts = random.Random(7), {True: 0, False: 0}
    for _ in range(2000):
        data = bytearray(SOUND)
        for _ in range(rng.randint(1, 2)):
            at = rng.randrange(len(data))
            data[at : at + rng.choice((0, 1, 1, 2))] = rng.choice(
                (b"", b"0", b"9", b'"', b"[", bytes([rng.randrange(256)]))
            )
        try:
            safetensors.deserialize(bytes(data))
            library_accepts = True
        except Exception:
            library_accepts = False
        try:
            read_header(tmp_path, bytes(data))
            kit_accepts = True
        except Refused as refused:
            kit_accepts = "twice" in str(refused) and library_accepts
        assert kit_accepts == library_accepts, bytes(data)
        counts[library_accepts] += 1
    assert min(counts.values()) > 20, counts


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("F64", torch.float64), ("F32", torch.float32), ("F16", torch.float16), ("BF16", torch.bfloat16)],
)
def test_a_tensor_is_read_in_pieces(tmp_path, monkeypatch, kind, dtype):
    monkeypatch.setattr(safetensors_files, "PIECE", 64)
    values = torch.arange(99).to(dtype)
    entries = read_header(tmp_path, save({"a": torch.ones(3), "b": values, "c": torch.empty(0)}))
    with (tmp_path / "adapter_model.safetensors").open("rb") as file:
        pieces = list(safetensors_files.read_pieces(file, entries["b"]))
        assert torch.equal(torch.frombuffer(bytearray().join(pieces), dtype=dtype), values)
        assert len(pieces) > 3 and max(map(len, pieces)) <= 64 and safetensors_files.torch_type(kind) == dtype
        assert list(safetensors_files.read_pieces(file, entries["c"])) == []


def test_the_library_reads_a_file_that_was_written_here():
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
