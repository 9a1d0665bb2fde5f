"""Loss and accuracy over examples, in one go and side by side, and a model that is left as it was."""

import math
import threading
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toys import class_accuracy

from fedpfn.evaluation import Evaluation, evaluate
from fedpfn.examples import Examples
from fedpfn.parallel import ModelPool
from fedpfn.params import State, read_state


def logits_as_inputs(rows: list[list[float]], labels: list[int]) -> Examples:
    return Examples(torch.tensor(rows), torch.tensor(labels))


def toy(size: int = 23) -> Examples:
    generator = np.random.default_rng(1)
    inputs = generator.normal(size=(size, 4)).astype(np.float32)
    return Examples.from_arrays(inputs, generator.integers(0, 3, size))


def mlp(seed: int = 5) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3))


# by hand


def test_loss_and_accuracy_by_hand() -> None:
    # two classes: loss ln(1 + e^-d) at a margin d
    examples = logits_as_inputs([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0]], [0, 1, 0])
    found = evaluate(nn.Identity(), examples)
    losses = [math.log1p(math.exp(-2)), math.log1p(math.exp(-1)), math.log1p(math.exp(3))]
    assert found == Evaluation(pytest.approx(sum(losses) / 3, rel=1e-14), 2 / 3, 3)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_a_short_last_batch_weighs_by_its_examples(batch_size: int) -> None:
    examples = logits_as_inputs([[9.0, 0.0], [9.0, 0.0], [0.0, 9.0]], [0, 0, 0])
    found = evaluate(nn.Identity(), examples, batch_size=batch_size)
    expected = (2 * math.log1p(math.exp(-9)) + math.log1p(math.exp(9))) / 3
    assert found.loss == pytest.approx(expected, rel=1e-14)
    assert found.accuracy == 2 / 3


def test_a_tie_is_won_by_the_first_class() -> None:
    assert evaluate(nn.Identity(), logits_as_inputs([[1.0, 1.0], [1.0, 1.0]], [0, 1])).accuracy == 0.5


def test_large_logits_are_summed_in_float64() -> None:
    found = evaluate(nn.Identity(), logits_as_inputs([[0.0, 1e4], [40.0, 0.0]], [0, 0]))
    assert found.loss == pytest.approx((1e4 + math.exp(-40)) / 2, rel=1e-15)


def test_a_loss_that_is_not_finite_is_a_measurement() -> None:
    found = evaluate(nn.Identity(), logits_as_inputs([[math.nan, 0.0], [1.0, 0.0]], [0, 0]))
    assert math.isnan(found.loss) and found.accuracy == 0.5 and found.examples == 2
    assert evaluate(nn.Identity(), logits_as_inputs([[-math.inf, 0.0]], [0])).loss == math.inf


@pytest.mark.parametrize("row", [[math.nan, 0.0, 1.0], [0.0, math.nan, 1.0], [math.nan] * 3, [2.0, 0.0, math.nan]])
def test_logits_with_a_nan_among_them_are_a_wrong_answer(row: list[float]) -> None:
    examples = logits_as_inputs([row] * 3, [0, 1, 2])
    assert evaluate(nn.Identity(), examples).accuracy == 0
    assert class_accuracy(nn.Identity(), examples, num_classes=3) == [0, 0, 0]


# class by class


def test_class_accuracy_by_hand() -> None:
    rows = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]
    found = class_accuracy(nn.Identity(), logits_as_inputs(rows, [0, 0, 0, 1, 1]), num_classes=4)
    assert found[:2] == [1 / 3, 1.0] and all(math.isnan(share) for share in found[2:])


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_class_accuracies_average_to_the_accuracy(batch_size: int) -> None:
    model, examples, state = mlp(), toy(60), read_state(mlp(1))
    found = class_accuracy(model, examples, state=state, num_classes=3, batch_size=batch_size)
    counts = np.bincount(examples.labels, minlength=3)
    assert float(np.dot(found, counts)) / 60 == pytest.approx(evaluate(model, examples, state=state).accuracy)
    assert len(set(found)) > 1 and model.training


def test_no_examples_have_neither_loss_nor_accuracy() -> None:
    found = evaluate(nn.Identity(), toy().span(0, 0))
    assert math.isnan(found.loss) and math.isnan(found.accuracy) and found.examples == 0


# examples


def test_images_are_normalised_channel_by_channel() -> None:
    images = np.array([[[[0, 255]], [[51, 102]]]], dtype=np.uint8)
    examples = Examples.from_arrays(images, np.array([1]), mean=(0.5, 0.2), std=(0.5, 0.1))
    inputs, labels = examples.batch(slice(0, 1))
    torch.testing.assert_close(inputs, torch.tensor([[[[-1.0, 1.0]], [[0.0, 2.0]]]]), rtol=0, atol=1e-6)
    assert inputs.dtype == torch.float32 and labels.tolist() == [1]
    assert examples.inputs.tolist() == images.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_features_and_tokens_pass_as_they_are(dtype: torch.dtype) -> None:
    examples = Examples(torch.arange(6).reshape(3, 2).to(dtype), torch.tensor([0, 1, 2]))
    inputs, labels = examples.batch(torch.tensor([2, 0]))
    assert inputs.dtype == dtype
    assert (inputs.tolist(), labels.tolist()) == ([[4, 5], [0, 1]], [2, 0])


def test_taking_and_spanning_keep_inputs_with_their_labels() -> None:
    examples = Examples(torch.arange(5.0), torch.arange(5), mean=(0.5,), std=(2.0,))
    taken = examples.take(np.array([3, 0, 3]))
    assert (taken.inputs.tolist(), taken.labels.tolist(), len(taken)) == ([3, 0, 3], [3, 0, 3], 3)
    assert (taken.mean, taken.std) == ((0.5,), (2.0,))
    assert examples.span(1, 3).labels.tolist() == [1, 2]
    assert examples.span(4, 9).labels.tolist() == [4]


def test_decoded_examples_are_what_a_batch_would_have_been() -> None:
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2)
    examples = Examples.from_arrays(images, np.array([1, 0]), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    whole = examples.decoded()
    for index in (slice(0, 1), slice(1, 2)):
        assert torch.equal(whole.batch(index)[0], examples.batch(index)[0])
    assert torch.equal(whole.labels, examples.labels) and examples.inputs.dtype == torch.uint8


def test_read_only_arrays_are_read_in() -> None:
    inputs, labels = np.ones((2, 3), dtype=np.float32), np.array([0, 1])
    inputs.flags.writeable = labels.flags.writeable = False
    examples = Examples.from_arrays(inputs, labels)
    examples.inputs.add_(1)
    assert inputs.max() == 1


# the model is left as it was


@pytest.mark.parametrize("training", [True, False])
def test_the_models_mode_weights_and_buffers_stay(training: bool) -> None:
    model = mlp().train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluate(model, toy())
    assert model.training == training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_evaluation_is_in_evaluation_mode() -> None:
    model = mlp().train()
    assert evaluate(model, toy()) == evaluate(model, toy()) == evaluate(model.eval(), toy())


def test_the_mode_comes_back_after_an_error() -> None:
    model = mlp().train()
    with pytest.raises(RuntimeError):
        evaluate(model, Examples(torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64)))
    assert model.training


def test_a_state_stands_in_for_the_models_own_buffers_too() -> None:
    model, other = mlp(), mlp(seed=6)
    other.get_buffer("1.running_mean").fill_(0.3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = evaluate(model, toy(), state=read_state(other))
    assert found == evaluate(other, toy())
    assert found != evaluate(model, toy())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# side by side


@pytest.fixture(params=[1, 3])
def pool(request: pytest.FixtureRequest) -> Iterator[ModelPool]:
    made = ModelPool(mlp(), workers=request.param)
    yield made
    made.close()


@pytest.mark.parametrize("chunk", [1, 5, 7, 22, 23, 1000])
def test_chunks_side_by_side_add_up_to_the_whole(pool: ModelPool, chunk: int) -> None:
    state = read_state(mlp(seed=6))
    whole = evaluate(mlp(), toy(), state=state)
    found = pool.evaluate(state, toy(), chunk=chunk)
    assert (found.accuracy, found.examples) == (whole.accuracy, whole.examples)
    # float32 forward passes of other batch sizes may differ in the last bit
    assert found.loss == pytest.approx(whole.loss, rel=1e-12 if chunk >= 23 else 1e-6)


def test_chunks_of_float64_add_up_to_twelve_digits() -> None:
    model = mlp().double()
    examples = Examples(toy().inputs.double(), toy().labels)
    whole = evaluate(model, examples)
    pool = ModelPool(model, workers=2)
    for chunk in (1, 4, 10, 22):
        found = pool.evaluate(read_state(model), examples, chunk=chunk)
        assert found.loss == pytest.approx(whole.loss, rel=1e-12)
        assert (found.accuracy, found.examples) == (whole.accuracy, whole.examples)
    pool.close()


def test_the_number_of_workers_changes_no_bit() -> None:
    state = read_state(mlp(seed=6))
    found = []
    for workers in (1, 2, 5):
        pool = ModelPool(mlp(), workers=workers)
        found.append(pool.evaluate(state, toy(), chunk=4))
        pool.close()
    assert found[0] == found[1] == found[2]


def test_results_come_in_the_order_of_the_items(pool: ModelPool) -> None:
    first_waits = threading.Event()

    def number(item: int) -> int:
        if item == 0 and pool.workers > 1:
            assert first_waits.wait(timeout=30)
        if item == 1:
            first_waits.set()
        return item * item

    assert pool.map(number, range(20)) == [item * item for item in range(20)]
    assert pool.map(number, []) == []


def test_the_first_error_in_order_is_raised(pool: ModelPool) -> None:
    def fail(item: int) -> int:
        if item >= 2:
            raise ValueError(f"item {item}")
        return item

    with pytest.raises(ValueError, match="item 2"):
        pool.map(fail, range(5))


class CopiedBy(nn.Linear):
    """Notes which thread copies it."""

    threads: ClassVar[list[int]] = []

    def __deepcopy__(self, memo: dict) -> "CopiedBy":
        CopiedBy.threads.append(threading.get_ident())
        return CopiedBy(self.in_features, self.out_features)


def test_copies_are_made_before_any_worker_starts() -> None:
    """A worker may start while the model is being called with other tensors, and would copy it without its own."""
    CopiedBy.threads.clear()
    pool = ModelPool(CopiedBy(2, 2), workers=3)
    barrier = threading.Barrier(3)
    pool.map(lambda _: barrier.wait(timeout=60), range(3))
    pool.close()
    assert CopiedBy.threads == [threading.get_ident()] * 3


def test_each_worker_has_a_copy_of_its_own_and_one_thread() -> None:
    model = mlp()
    pool = ModelPool(model, workers=2)
    meet = threading.Barrier(2)

    def look(_: int) -> tuple[int, int]:
        meet.wait(timeout=30)
        return id(pool.model), torch.get_num_threads()

    models, threads = zip(*pool.map(look, range(2)), strict=True)
    assert len({id(model), *models}) == 3
    assert set(threads) == {1} and torch.get_num_threads() == 1
    assert pool.model is model
    pool.close()


def test_a_map_inside_a_map_runs_in_its_worker_and_does_not_lock_up() -> None:
    pool = ModelPool(mlp(), workers=2)

    def inner(_: int) -> int:
        return threading.get_ident()

    for outer in pool.map(lambda _: {threading.get_ident(), *pool.map(inner, range(3))}, range(4)):
        assert len(outer) == 1
    pool.close()


def test_the_pool_changes_no_weight_of_its_model(pool: ModelPool) -> None:
    before = {name: tensor.clone() for name, tensor in pool.model.state_dict().items()}
    state: State = {name: tensor + 1 for name, tensor in read_state(pool.model).items()}
    pool.evaluate(state, toy(), chunk=4)
    after: dict[str, Tensor] = pool.model.state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())


def test_a_state_that_is_not_the_models_is_refused() -> None:
    model, examples = nn.Linear(2, 2), Examples(torch.randn(4, 2), torch.zeros(4, dtype=torch.int64))
    for state in ({"weights": torch.zeros(2, 2), "bias": torch.zeros(2)}, {"weight": torch.zeros(2, 2)}):
        with pytest.raises(ValueError, match="not this model's"):
            evaluate(model, examples, state=state)
    with pytest.raises(ValueError, match="bias"):
        evaluate(model, examples, state={"weight": torch.zeros(2, 2), "bias": torch.zeros(1)})


def test_a_part_that_was_in_evaluation_mode_stays_there() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    model[1].eval()
    evaluate(model, Examples(torch.randn(4, 2), torch.zeros(4, dtype=torch.int64)))
    assert model.training and not model[1].training


def test_images_without_statistics_are_refused() -> None:
    with pytest.raises(ValueError, match="mean and std"):
        Examples(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
