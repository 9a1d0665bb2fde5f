"""Tasks and local losses: what each loss and score is, and where one is another."""

import math
from collections.abc import Callable
from contextlib import closing

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from toys import class_accuracy, draw, same_state

from fedpfn.evaluation import evaluate
from fedpfn.examples import Examples
from fedpfn.lmc import pairwise_barriers
from fedpfn.lmc.path_evaluation import measure_paths
from fedpfn.losses import batch_loss, binary_cross_entropy, per_example
from fedpfn.parallel import ModelPool
from fedpfn.params import State, read_state
from fedpfn.tasks import CLASSIFICATION, MULTILABEL, REGRESSION, TASKS, Task, resolve_task, task_of
from fedpfn.training import batch_order, local_loss, loss_faults, make_optimizer, stackable, train

TOP_TWO = Task(
    "top two",
    "classes",
    functional.cross_entropy,
    lambda logits, labels: (logits.topk(2, dim=1).indices == labels[:, None]).any(dim=1),
    score_name="accuracy of two guesses",
)
PINBALL = Task(
    "median",
    "values",
    per_example(lambda outputs, targets: (outputs[:, 0] - targets).abs() / 2),
    lambda outputs, targets: (outputs[:, 0] - targets).abs() / 2,
    score_name="pinball loss",
    better="lower",
    score_unit="label unit",
)


def some(task: Task, count: int = 40) -> Examples:
    labels = {
        "classes": torch.arange(count) % 3,
        "values": draw(count, seed=1),
        "multi-hot": (draw(count, 3, seed=1) > 0).to(torch.uint8),
    }[task.labels]
    return Examples(draw(count, 5), labels, task=task)


def network(task: Task, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1 if task.labels == "values" else 3))


# which task goes with which labels


@pytest.mark.parametrize(
    ("labels", "task"),
    [
        (torch.zeros(2, dtype=torch.int64), CLASSIFICATION),
        (torch.zeros(2), REGRESSION),
        (torch.zeros(2, 3), REGRESSION),
        (torch.zeros(2, 3, dtype=torch.uint8), MULTILABEL),
        (torch.zeros(2, 1, dtype=torch.bool), MULTILABEL),
    ],
)
def test_the_labels_tell_the_task(labels: Tensor, task: Task) -> None:
    assert task_of(labels) == task == Examples(draw(2, 5), labels).task


def test_examples_keep_their_task_whatever_is_taken_of_them() -> None:
    examples = some(TOP_TWO)
    assert all(part.task is TOP_TWO for part in (examples.take(np.arange(3)), examples.span(1, 4), examples.decoded()))


def test_tasks_go_by_name_or_import_string() -> None:
    assert resolve_task("auto") is None and resolve_task("regression") is REGRESSION
    assert resolve_task(f"{__name__}:TOP_TWO") is TOP_TWO
    with pytest.raises(ValueError, match="no task 'ranking'; built in: auto, classification"):
        resolve_task("ranking")
    with pytest.raises(ValueError, match=r"is of type function; expected a fedpfn\.tasks\.Task"):
        resolve_task(f"{__name__}:network")


def test_what_is_better_the_higher_has_to_be_a_share() -> None:
    with pytest.raises(ValueError, match="must be a share"):
        Task("likelihood", "values", batch_loss, draw, score_unit="nats")


# losses


@given(st.integers(1, 9), st.integers(0, 99))
def test_one_of_several_labels_is_a_binary_classification(count: int, seed: int) -> None:
    logit, label = draw(count, 1, seed=seed), (draw(count, 1, seed=seed + 1) > 0).to(torch.uint8)
    both = torch.cat([torch.zeros_like(logit), logit], dim=1)
    expected = functional.cross_entropy(both, label[:, 0].long())
    torch.testing.assert_close(binary_cross_entropy(logit, label), expected)
    right = MULTILABEL.score(logit, label)
    assert torch.equal(right[:, 0], CLASSIFICATION.score(both, label[:, 0]))


def test_labels_that_hold_together_are_a_mean_over_them() -> None:
    logits, labels = draw(6, 4), (draw(6, 4, seed=2) > 0).to(torch.uint8)
    alone = [batch_loss(logits[:, [at]], labels[:, [at]]) for at in range(4)]
    torch.testing.assert_close(batch_loss(logits, labels), torch.stack(alone).mean())


@pytest.mark.parametrize("task", [*TASKS.values(), PINBALL], ids=lambda task: task.name)
def test_sum_and_mean_are_those_of_the_examples(task: Task) -> None:
    examples = some(task)
    outputs = network(task)(examples.inputs)
    each = task.loss(outputs, examples.labels, reduction="none")
    assert each.shape == (40,)
    torch.testing.assert_close(task.loss(outputs, examples.labels, reduction="sum"), each.sum())
    torch.testing.assert_close(task.loss(outputs, examples.labels), each.mean())


@pytest.mark.parametrize("task", [REGRESSION, MULTILABEL])
def test_outputs_of_another_size_are_refused(task: Task) -> None:
    with pytest.raises(ValueError, match="do not match"):
        task.loss(draw(40, 2), some(task).labels)


# scores


def test_scores_by_hand() -> None:
    logits, labels = torch.tensor([[1.0, -1.0], [2.0, 3.0]]), torch.tensor([[1, 1], [1, 0]], dtype=torch.uint8)
    result = evaluate(nn.Identity(), Examples(logits, labels))
    assert result.accuracy == 0.5 and result.error is None
    assert class_accuracy(nn.Identity(), Examples(logits, labels), num_classes=2) == [1.0, 0.0]
    values = evaluate(nn.Identity(), Examples(torch.tensor([[1.0], [4.0]]), torch.tensor([0.0, 2.0])))
    assert (values.loss, values.error) == (2.5, 1.5) and math.isnan(values.accuracy)


def test_outputs_that_are_nan_are_wrong_whatever_the_labels() -> None:
    logits = torch.tensor([[math.nan, -1.0], [-1.0, -1.0]])
    assert evaluate(nn.Identity(), Examples(logits, torch.zeros(2, 2, dtype=torch.uint8))).accuracy == 0.5
    error = evaluate(nn.Identity(), Examples(torch.tensor([[math.nan], [1.0]]), torch.zeros(2))).error
    assert error is not None and math.isnan(error)


@pytest.mark.parametrize("task", [*TASKS.values(), TOP_TWO, PINBALL], ids=lambda task: task.name)
def test_chunks_on_several_workers_come_to_one_pass(task: Task) -> None:
    model, examples = network(task), some(task)
    whole = evaluate(model, examples)
    pool = ModelPool(model, workers=2)
    parts = pool.evaluate(read_state(model), examples, chunk=7)
    pool.close()
    assert parts.loss == pytest.approx(whole.loss)
    if task.has_accuracy:
        assert parts.accuracy == pytest.approx(whole.accuracy, abs=1e-12) and parts.error is whole.error is None
    else:
        assert parts.error == pytest.approx(whole.error) and math.isnan(parts.accuracy)


def test_a_score_of_the_users_own_is_at_least_as_generous_as_it_says() -> None:
    model = network(TOP_TWO)
    one, two = evaluate(model, some(CLASSIFICATION)), evaluate(model, some(TOP_TWO))
    assert one.loss == two.loss and one.accuracy < two.accuracy <= 1
    by_class = class_accuracy(model, some(TOP_TWO), num_classes=3)
    counts = torch.bincount(some(TOP_TWO).labels).tolist()
    total = sum(share * count for share, count in zip(by_class, counts, strict=True))
    assert total / 40 == pytest.approx(two.accuracy)


# barriers


def states(task: Task) -> list[State]:
    return [read_state(network(task, seed)) for seed in (1, 2, 3)]


@pytest.mark.parametrize("task", [*TASKS.values(), TOP_TWO, PINBALL], ids=lambda task: task.name)
def test_the_fast_path_measures_what_the_plain_one_does(task: Task) -> None:
    model, examples = network(task), some(task)
    fast = pairwise_barriers(model, states(task), examples, points=5, workers=2)
    plain = pairwise_barriers(model, states(task), examples, points=5, workers=1, plain=True)
    for name in ("loss", "accuracy", "error", "loss_barriers", "accuracy_barriers", "error_barriers"):
        np.testing.assert_allclose(getattr(fast, name), getattr(plain, name), rtol=1e-5, atol=1e-7)
    with closing(ModelPool(model, workers=1)) as pool:
        stacked = measure_paths(pool, states(task), examples, points=5, stacked=True)
    for name in ("loss", "accuracy", "error"):
        np.testing.assert_allclose(getattr(stacked, name), getattr(plain, name), rtol=1e-5, atol=1e-7)
    assert np.isnan(fast.error).all() == task.has_accuracy and np.isnan(fast.accuracy).all() != task.has_accuracy


def test_an_error_barrier_is_the_excess_over_the_chord() -> None:
    model, task = network(REGRESSION), REGRESSION
    result = pairwise_barriers(model, states(task)[:2], some(task), points=5, workers=1)
    (errors,), alphas = result.error, result.alphas
    chord = alphas * errors[-1] + (1 - alphas) * errors[0]
    assert result.error_barriers[0] == pytest.approx(max(0.0, float((errors - chord)[1:-1].max())))
    assert result.matrix("error", 2)[0, 1] == result.error_barriers[0]


def test_a_loss_of_its_own_has_barriers_of_its_own() -> None:
    """The absolute error is half as steep in PINBALL, and so are its barriers."""
    model = network(REGRESSION)
    whole = pairwise_barriers(model, states(REGRESSION), some(REGRESSION), points=5, workers=1)
    half = pairwise_barriers(model, states(PINBALL), some(PINBALL), points=5, workers=1)
    np.testing.assert_allclose(2 * half.error, whole.error, rtol=1e-6)
    np.testing.assert_allclose(half.loss, half.error, rtol=1e-6)


# training


def trained(task: Task, **options: object) -> State:
    model, examples = network(task), some(task)
    batches = batch_order(len(examples), 8, np.random.default_rng(0))
    train(model, examples, batches, [(None, 12)], optimizer=make_optimizer("sgd", lr=0.1), **options)  # type: ignore[arg-type]
    return read_state(model)


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_training_takes_the_loss_of_the_examples_task(task: Task) -> None:
    default = trained(task)
    assert same_state(default, trained(task, loss=local_loss("auto", task)(some(task).labels)))
    assert same_state(default, trained(task, loss=task.loss))


def test_a_task_of_the_users_own_is_trained_on_its_loss_and_can_be_stacked() -> None:
    assert not same_state(trained(PINBALL), trained(REGRESSION))
    assert same_state(trained(PINBALL), trained(REGRESSION, loss=PINBALL.loss))
    assert (
        stackable(network(PINBALL), some(PINBALL)) is None and stackable(network(MULTILABEL), some(MULTILABEL)) is None
    )


# losses of clients


def loss_of(name: str, task: Task, labels: Tensor, smoothing: float = 0.1) -> Callable[[Tensor, Tensor], Tensor]:
    return local_loss(name, task, smoothing=smoothing)(labels)


@pytest.mark.parametrize("task", [CLASSIFICATION, MULTILABEL], ids=lambda task: task.name)
def test_smoothing_of_0_is_the_tasks_loss_to_the_bit(task: Task) -> None:
    examples = some(task)
    logits = draw(40, 3, seed=3)
    assert torch.equal(loss_of("label-smoothing", task, examples.labels, 0.0)(logits, examples.labels),
                       task.loss(logits, examples.labels))  # fmt: skip
    assert same_state(trained(task), trained(task, loss=loss_of("label-smoothing", task, examples.labels, 0.0)))


def test_smoothed_labels_are_targets_between_0_and_1() -> None:
    logits, labels = draw(1, 3), torch.tensor([1])
    targets = torch.tensor([[0.1, 0.8, 0.1]])
    expected = functional.cross_entropy(logits, targets)
    torch.testing.assert_close(loss_of("label-smoothing", CLASSIFICATION, labels, 0.3)(logits, labels), expected)
    rows = torch.tensor([[1, 0, 1]], dtype=torch.uint8)
    soft = functional.binary_cross_entropy_with_logits(logits, torch.tensor([[0.85, 0.15, 0.85]]))
    torch.testing.assert_close(loss_of("label-smoothing", MULTILABEL, rows, 0.3)(logits, rows), soft)


def test_balanced_classes_have_weights_of_1() -> None:
    labels = torch.arange(12) % 3
    logits = draw(12, 3)
    loss = loss_of("balanced", CLASSIFICATION, labels)
    torch.testing.assert_close(loss(logits, labels), functional.cross_entropy(logits, labels))
    torch.testing.assert_close(loss(logits[:5], labels[:5]), functional.cross_entropy(logits[:5], labels[:5]))


@given(st.lists(st.sampled_from([0, 1, 3]), min_size=1, max_size=12))
def test_each_class_of_a_client_counts_alike_and_weights_are_1_on_average(classes: list[int]) -> None:
    labels, logits = torch.tensor(classes), draw(len(classes), 5)
    result = loss_of("balanced", CLASSIFICATION, labels)(logits, labels)
    each = functional.cross_entropy(logits, labels, reduction="none")
    by_class = torch.stack([each[labels == one].mean() for one in labels.unique()])
    torch.testing.assert_close(result, by_class.mean())
    ones = torch.zeros(len(classes), 5)
    torch.testing.assert_close(loss_of("balanced", CLASSIFICATION, labels)(ones, labels), torch.tensor(math.log(5)))


def own_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    return 2 * functional.cross_entropy(outputs, labels)


def test_a_loss_of_the_users_own_is_called_with_outputs_and_labels() -> None:
    labels = some(CLASSIFICATION).labels
    assert loss_of(f"{__name__}:own_loss", CLASSIFICATION, labels) is own_loss
    # half the rate on twice the loss
    twice = trained(CLASSIFICATION, loss=own_loss)
    assert not same_state(twice, trained(CLASSIFICATION))


@pytest.mark.parametrize(
    ("name", "task", "expected"),
    [
        ("balanced", REGRESSION, "train.loss=balanced is for classes, and the labels of a regression are values"),
        ("balanced", MULTILABEL, "the labels of a multilabel are multi-hot"),
        ("label-smoothing", REGRESSION, "is for classes and multi-hot"),
        ("focal", None, "no train.loss 'focal'; built in: auto, label-smoothing, balanced"),
        (f"{__name__}:TASK", None, "has no 'TASK'"),
        (f"{__name__}:PINBALL", None, "is of type Task, not a function"),
    ],
)
def test_a_loss_that_does_not_go_with_the_task_is_refused(name: str, task: Task | None, expected: str) -> None:
    (fault,) = loss_faults(name, task)
    assert expected in fault and "\n" not in fault
    if task is not None:
        with pytest.raises(ValueError, match=r"train\.loss"):
            local_loss(name, task)
