"""A GPU that runs out of memory, imitated: a function that raises PyTorch's error at one of its calls."""

import torch

MESSAGE = "CUDA out of memory. Tried to allocate 2.00 KiB. GPU 0 has a total capacity of 14.58 GiB of which 1 is free."


def raise_at(monkeypatch, owner, name, call=1, times=1, message=MESSAGE):
    """Let `owner.name` raise torch.OutOfMemoryError at some calls, counted from 1; returns the list of all calls."""
    inner, calls = getattr(owner, name), []

    def full(*args, **kwargs):
        calls.append(name)
        if call <= len(calls) < call + times:
            raise torch.OutOfMemoryError(message)
        return inner(*args, **kwargs)

    monkeypatch.setattr(owner, name, full)
    return calls
