"""CUDA graphs on a CPU: capturing records PyTorch's operations without computing them, replaying computes them.

What is captured gives NaNs and zeros until it is replayed, always into the same memory. As on a GPU, a replay reads and
writes the tensors that were there at the capture, and reading a value on the host while capturing is an error.
"""

import contextlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

ITEM = torch.ops.aten._local_scalar_dense.default


class Recorder(TorchDispatchMode):
    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is ITEM:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        written = [
            kwargs.get(argument.name, args[place] if place < len(args) else None)
            for place, argument in enumerate(func._schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        if written:
            self.calls.append((func, args, kwargs, []))
            return written[0] if len(written) == 1 else tuple(written)
        outputs = func(*args, **kwargs)
        places = {value.untyped_storage().data_ptr() for value in tensors_of((args, kwargs))}
        if fresh := [v for v in tensors_of(outputs) if v.untyped_storage().data_ptr() not in places]:  # no views
            self.calls.append((func, args, kwargs, fresh))
            for value in fresh:
                value.fill_(torch.nan if value.is_floating_point() else 0)
        return outputs


def tensors_of(values):
    return [value for value in tree_flatten(values)[0] if isinstance(value, torch.Tensor)]


class FakeGraph:
    """Stands in for `torch.cuda.CUDAGraph`."""

    made = []

    def capture_begin(self, pool, capture_error_mode):
        assert not is_capturing(), "a capture within a capture"
        FakeGraph.made.append(self)
        self.pool, self.calls, self.ended = pool, [], False
        self.mode = Recorder(self.calls)
        self.mode.__enter__()

    def capture_end(self):
        self.mode.__exit__(None, None, None)
        self.ended = True

    def replay(self):
        assert self.ended
        for func, args, kwargs, outputs in self.calls:
            results = tensors_of(func(*args, **kwargs))
            for output, result in zip(outputs, results, strict=bool(outputs)):
                output.copy_(result)


def is_capturing():
    return bool(FakeGraph.made) and not FakeGraph.made[-1].ended


def recording(compile_kernel):
    """A function in place of `expert_kernel.compile_kernel`, whose kernels are captured too."""

    def compile_for(*names):
        kernel = compile_kernel(*names)

        def launch(**arguments):
            if is_capturing():
                FakeGraph.made[-1].calls.append((lambda **given: kernel(**given) or (), (), arguments, []))
            else:
                kernel(**arguments)

        return launch

    return compile_for


class FakeStream:
    def __init__(self, device=None):
        pass

    def wait_stream(self, stream):
        pass


def install(monkeypatch):
    """Let `torch.cuda` capture and replay on a CPU. Returns the list of graphs that are made."""
    pools = iter(range(1000))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "current_stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(pools))
    FakeGraph.made = []
    return FakeGraph.made
