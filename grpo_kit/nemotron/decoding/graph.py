"""A decoding step as CUDA graphs, so that a GPU does not wait for the host to launch a thousand small kernels.

A step is a generator (`Step`). It computes as any function does, and yields the work that no graph can hold, as a
function whose result it is sent back. That is what the routed experts do, whose places and copies the host decides, and
attention, whose keys and values grow: at 8 rows of 2,048 places the 30B's take 96 MiB, half of them empty on average,
and to read the empty half costs a T4 as much as the launches that a graph would save.

So the graphs hold nothing that goes stale when experts move out of a full memory. States, and weights that an optimiser
changes in place, are read where they lie; whoever puts a state into another place begins with another `GraphedStep`.

Not run on a GPU yet: the tests record and replay PyTorch's operations on a CPU.
"""

import functools
import warnings
import weakref
from collections.abc import Callable, Generator
from typing import Any

import torch

Step = Generator[Callable[[], torch.Tensor], torch.Tensor, torch.Tensor]
TRIED, TRIED_ROWS = 5, 8  # layers and rows on which graphs are tried before they are used, with two copies of states
# Of the largest value. A replay runs the same kernels in the same order; another address gives anything.
LARGEST_ERROR = 1e-3
_works: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()  # by model, once tried
_latest: weakref.WeakValueDictionary[torch.device, "Recording"] = weakref.WeakValueDictionary()


def run(step: Step, results: list[torch.Tensor] | None = None) -> torch.Tensor:
    """Compute a step without graphs.

    Args:
        step: a step that has not begun.
        results: gets the result of each work that it yields.

    Returns:
        What the step returns.
    """
    result = None
    while True:
        try:
            work = step.send(result)
        except StopIteration as end:
            return end.value
        result = work()
        if results is not None:
            results.append(result)


class Recording:
    """A step for inputs of one shape, captured. Capturing computes nothing and changes no state.

    Args:
        make_step: begins a step, whose input it may change in place.
        x: an input, for its shape and type.
        results: those of the step's yielded work, as `run` has collected them.

    Attributes:
        calls: what a replay does, one after the other; empty once it is released, which the next recording does.

    Raises whatever cannot be captured.
    """

    def __init__(self, make_step: Callable[[torch.Tensor], Step], x: torch.Tensor, results: list[torch.Tensor]) -> None:
        # All captures are on one stream, because cuBLAS keeps a workspace of 8 MiB or more for every stream that it has
        # seen. With it goes another recording's, since PyTorch frees the stream's workspace when a graph is freed.
        if x.device in _latest:
            _latest[x.device].release()
        _latest[x.device] = self
        self._x, buffers = torch.empty_like(x), [torch.empty_like(result) for result in results]
        self.calls: list[Callable] = []
        pool, stream = torch.cuda.graph_pool_handle(), _find_stream(x.device)
        stream.wait_stream(torch.cuda.current_stream(x.device))
        step, sent = make_step(self._x), None
        with torch.cuda.stream(stream):
            for buffer in (*buffers, None):
                graph, work = torch.cuda.CUDAGraph(), None
                # Other threads may use CUDA meanwhile.
                graph.capture_begin(pool=pool, capture_error_mode="thread_local")
                try:
                    work = step.send(sent)
                except StopIteration as end:
                    self._output = end.value
                finally:
                    graph.capture_end()
                self.calls.append(graph.replay)
                if work is not None:
                    self.calls.append(functools.partial(_fill, buffer, work))
                sent = buffer

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """What the step gives for x. It lies in the graphs' memory, so the next call overwrites it."""
        self._x.copy_(x)
        for call in self.calls:
            call()
        return self._output

    def release(self) -> None:
        """Free the graphs."""
        self.calls.clear()


@functools.cache
def _find_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _fill(buffer: torch.Tensor, work: Callable[[], torch.Tensor]) -> None:
    buffer.copy_(work())


class GraphedStep:
    """A step that runs once as it is, then is recorded, and is replayed from there on.

    Good for one number of rows, and as long as no state lies in another place. Where recording fails, there is one
    warning, and every step of the model runs as it is from then on. Nothing is lost, since recording computes nothing.

    Args:
        model: whose step it is.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._results: list[torch.Tensor] | None = None
        self._recording: Recording | None = None

    def __call__(self, make_step: Callable[[torch.Tensor], Step], x: torch.Tensor) -> torch.Tensor:
        """What the step gives for x.

        Args:
            make_step: begins the step, the same at every call. It is not kept: it may hold the states, which would then
                be freed late.
            x: the input, which may be changed.

        Returns:
            The result. The next call may overwrite it.
        """
        if self._recording is not None and not self._recording.calls:
            self._recording = self._results = None
        if self._recording is None and self._results is not None and _works.get(self._model, True):
            self._record(make_step, x)
        if self._recording is not None:
            return self._recording(x)
        self._results = []
        return run(make_step(x), self._results)

    def _record(self, make_step: Callable[[torch.Tensor], Step], x: torch.Tensor) -> None:
        try:
            self._recording = Recording(make_step, x, self._results)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            _give_up(self._model, x.device, f"a step cannot be captured ({error})")


def is_usable(model: Any, make_trial: Callable[[], Callable[[torch.Tensor], Step]], x: torch.Tensor) -> bool:
    """Whether graphs give what the same step gives without them; tried once for each model. Warns once if not.

    Args:
        model: whose steps they are.
        make_trial: makes a `make_step` for the trial, with states of its own, the same each time.
        x: an input, of which three are made: for a step as it is, one that is recorded, and a replay.

    Raises:
        torch.OutOfMemoryError: There is no room for the trial.
    """
    if not is_possible(x.device):
        return False
    if model not in _works:
        plain, captured, graphed = make_trial(), make_trial(), GraphedStep(model)
        for number, value in enumerate((x, x.flip(-1), -x)):
            expected, result = run(plain(value.clone())), graphed(captured, value.clone())
            error = ((result - expected).abs().max() / expected.abs().max()).item()
            if not error <= LARGEST_ERROR:
                _give_up(model, x.device, f"step {number + 1} of a replay is off by {error:.2g} of the largest")
            if not _works.get(model, True):
                break
        _works.setdefault(model, True)
    return _works[model]


def is_possible(device: torch.device) -> bool:
    """Whether a device has graphs at all."""
    return device.type == "cuda"


def _give_up(model: Any, device: torch.device, problem: str) -> None:
    _works[model] = False
    warnings.warn(
        f"Decoding steps on {device} launch their kernels one by one, which is slower but correct. CUDA graphs are not "
        f"used: {' '.join(problem.split())}.",
        stacklevel=2,
    )
