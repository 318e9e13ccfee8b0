"""Steps as graphs, on stand-ins for CUDA's graphs that record and replay PyTorch's operations."""

import functools

import pytest
import torch

from grpo_kit.nemotron.decoding import graph
from tests.helpers import fake_graphs


class Toy:
    """A layer with a state, work that no graph may hold, and a layer behind it."""

    def __init__(self, rows=3, hidden=4):
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(hidden, hidden, generator=generator)
        self.state = torch.randn(rows, hidden, generator=generator)
        self.lengths = []  # what the work on the host has seen

    def make_step(self, x):
        self.state.mul_(0.5).add_(x @ self.weight)
        read = self.state.tanh()
        looked_up = yield lambda: self.look_up(read)
        x.add_(looked_up * 2)
        again = yield lambda: x.sum(1, keepdim=True)
        return x + again

    def look_up(self, read):
        self.lengths.append(round(read.abs().sum().item(), 3))  # waits for the value, and has another effect each time
        return read * len(self.lengths)

    def take_rows(self, at):
        self.state = self.state[at]


def graphed(toy, model=None):
    return functools.partial(graph.GraphedStep(model or toy), toy.make_step)


def inputs(count, rows=3):
    return torch.randn(count, rows, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def made(monkeypatch):
    return fake_graphs.install(monkeypatch)


def test_without_graphs_a_step_is_a_function():
    toy, expected = Toy(), Toy()
    (x,) = inputs(1)
    expected.state = expected.state * 0.5 + x @ expected.weight
    summed = x + expected.state.tanh() * 2
    results = []
    torch.testing.assert_close(graph.run(toy.make_step(x.clone()), results), summed + summed.sum(1, keepdim=True))
    assert [tuple(result.shape) for result in results] == [(3, 4), (3, 1)]


def test_replays_give_what_the_step_gives_and_call_the_host_each_time(made):
    plain, toy = Toy(), Toy()
    step = graphed(toy)
    for x in inputs(5):
        assert torch.equal(step(x.clone()), graph.run(plain.make_step(x.clone())))
        assert torch.equal(toy.state, plain.state)
    assert toy.lengths == plain.lengths and len(plain.lengths) == 5
    # Once as it is, then one recording of three graphs, which share one pool of memory.
    assert len(made) == 3 and len({captured.pool for captured in made}) == 1


def test_recording_computes_nothing(made):
    toy = Toy()
    results, (x,) = [], inputs(1)
    graph.run(toy.make_step(x.clone()), results)
    before, seen = toy.state.clone(), list(toy.lengths)
    graph.Recording(toy.make_step, x, results)
    assert torch.equal(toy.state, before) and toy.lengths == seen and len(made) == 3


def test_values_that_change_in_place_are_read_where_they_lie(made):
    plain, toy = Toy(), Toy()
    step = graphed(toy)
    for number, x in enumerate(inputs(4)):
        for one in (plain, toy):
            one.weight.mul_(number + 1)  # as an optimiser does
        assert torch.equal(step(x.clone()), graph.run(plain.make_step(x.clone())))


def test_rows_that_leave_are_recorded_anew(made):
    plain, toy = Toy(), Toy()
    step = graphed(toy)
    for x in inputs(3):
        step(x.clone()), graph.run(plain.make_step(x.clone()))
    for one in (plain, toy):
        one.take_rows(torch.tensor([0, 2]))
    step = graphed(toy)
    for x in inputs(4, rows=2):
        assert torch.equal(step(x.clone()), graph.run(plain.make_step(x.clone())))
    assert len(made) == 6 and toy.lengths == plain.lengths


def test_a_state_in_another_place_needs_another_step(made):
    """The replay goes on with the old state."""
    plain, toy = Toy(), Toy()
    step = graphed(toy)
    for x in inputs(2):
        step(x.clone()), graph.run(plain.make_step(x.clone()))
    for one in (plain, toy):
        one.take_rows(torch.tensor([2, 1, 0]))
    (x,) = inputs(1)
    assert not torch.equal(step(x.clone()), graph.run(plain.make_step(x.clone())))


def test_of_two_recordings_the_older_is_released_and_made_again(made):
    """PyTorch 2.13 frees a stream's cuBLAS workspace with any graph that was captured there (issue 193402)."""
    plain, toys = [Toy(), Toy()], [Toy(), Toy()]
    steps = [graphed(toy) for toy in toys]
    for number in (0, 0, 0, 1, 1, 1, 0, 0, 0, 1):
        (x,) = inputs(1)
        assert torch.equal(steps[number](x.clone()), graph.run(plain[number].make_step(x.clone())))
    assert len(made) == 3 * 3
    kept = [step.func._recording for step in steps]
    assert len(kept[0].calls) == 5 and kept[1] is None


class Waiting(Toy):
    def make_step(self, x):
        if x.sum().item() > 1e9:  # waits for a value, which no capture allows
            x = x * 2
        yield from super().make_step(x)
        return x


def test_what_cannot_be_captured_runs_as_it_is_after_one_warning(made):
    plain, toy = Waiting(), Waiting()
    step = graphed(toy)
    with pytest.warns(
        UserWarning, match=r"on cpu launch their kernels one by one.*\(CUDA error: operation not"
    ) as seen:
        for x in inputs(4):
            assert torch.equal(step(x.clone()), graph.run(plain.make_step(x.clone())))
    assert len(seen) == 1 and len(made) == 1 and made[0].ended
    assert torch.equal(toy.state, plain.state)


def test_out_of_memory_is_no_reason_to_do_without_graphs(made, monkeypatch):
    """It is relieved by moving experts, and then the whole work is done again."""

    def fail(self, **_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")

    plain, toy = Toy(), Toy()
    step, (first, second) = graphed(toy), inputs(2)
    assert torch.equal(step(first.clone()), graph.run(plain.make_step(first.clone())))
    with monkeypatch.context() as full, pytest.raises(torch.OutOfMemoryError, match=r"2\.00 MiB"):
        full.setattr(fake_graphs.FakeGraph, "capture_begin", fail)
        step(second.clone())
    assert torch.equal(step(second.clone()), graph.run(plain.make_step(second.clone()))) and len(made) == 3


# --- tried before it is used ---


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setattr(graph, "is_possible", lambda device: True)


def is_usable(kind, model):
    return graph.is_usable(model, lambda: kind().make_step, inputs(1)[0])


def test_a_step_that_agrees_is_used_and_is_tried_once_for_each_model(made, on_cpu, recwarn):
    models = Toy(), Toy()
    assert [is_usable(Toy, model) for model in (models[0], models[0], models[1])] == [True] * 3
    assert not recwarn.list and len(made) == 3 * 2


class Moving(Toy):
    """Makes its state anew at each step, so that a replay works on an old one."""

    def make_step(self, x):
        self.state = self.state * 0.5 + x
        x.add_((yield lambda: self.state * 1))
        return x


class Losing(Toy):
    """Gives NaN when it is replayed: a number of the host is no part of a graph, only its value at the capture."""

    def make_step(self, x):
        scale = torch.nan if fake_graphs.is_capturing() else 1.0
        yield lambda: x
        return x * scale


UNUSABLE = {
    Waiting: "cannot be captured",
    Moving: r"step \d of a replay is off by [\d.e-]+ of",
    Losing: "off by nan of",
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_step_that_fails_the_trial_is_never_used_after_one_warning(made, on_cpu, kind):
    model = Toy()
    with pytest.warns(UserWarning, match=UNUSABLE[kind]) as seen:
        assert [is_usable(kind, model) for _ in range(3)] == [False] * 3
    assert len(seen) == 1


def test_a_failure_later_on_holds_for_the_model_too(made, on_cpu):
    model, toy = Toy(), Waiting()
    assert is_usable(Toy, model)
    step = graphed(toy, model)
    with pytest.warns(UserWarning, match="cannot be captured"):
        for x in inputs(2):
            step(x)
    assert not is_usable(Toy, model)


def test_a_cpu_has_no_graphs(recwarn):
    assert not is_usable(Toy, Toy()) and not recwarn.list
