"""``inspect_model`` finds each planted fault, names it, and raises nothing."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from fedpfn.models import Inspection, build, inspect_model

SHAPE, CLASSES = (4,), 3


class Base(nn.Module):
    """A sound classifier of four features; each subclass below spoils one thing."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def found(inspection: Inspection, check: str, level: str) -> str:
    """Return the one message of ``check`` at ``level``."""
    (message,) = [f.message for f in inspection.findings if (f.check, f.level) == (check, level)]
    return message


def levels(inspection: Inspection) -> set[str]:
    return {finding.level for finding in inspection.findings}


def inspect(source, *, shape: tuple[int, ...] = SHAPE, classes: int = CLASSES) -> Inspection:
    return inspect_model(source, shape, classes)


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet20"])
def test_built_in_models_pass_without_a_warning(name: str) -> None:
    inspection = inspect(partial(build, name, (1, 28, 28), 10, seed=0), shape=(1, 28, 28), classes=10)
    assert inspection.ok
    assert levels(inspection) == {"ok"}
    assert [finding.check for finding in inspection.findings] == [
        "build", "parameters", "forward", "repeat", "backward", "state",
    ]  # fmt: skip


def test_tensors_are_listed_and_counted() -> None:
    inspection = inspect(Base)
    assert [(t.name, t.shape, t.numel, t.trainable, t.dtype, t.role) for t in inspection.tensors] == [
        ("layer.weight", (3, 4), 12, True, "float32", "trained"),
        ("layer.bias", (3,), 3, True, "float32", "trained"),
    ]
    assert (inspection.total, inspection.trainable) == (15, 15)


def test_inspection_moves_no_generator_and_leaves_a_ready_made_model_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).eval()
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    assert inspect(model).ok
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


# Building


def test_a_source_that_raises_or_makes_no_module_is_a_fault() -> None:
    def broken() -> nn.Module:
        raise RuntimeError("no\nluck")

    for source, word in [(broken, "RuntimeError: no luck"), (lambda: 3, "int"), (lambda: nn.LazyLinear(3), "lazy")]:
        inspection = inspect(source)
        assert not inspection.ok
        assert inspection.tensors == ()
        assert word in found(inspection, "build", "fault")


def test_builds_that_differ_under_one_seed_are_a_fault() -> None:
    drawn = iter(range(10))

    def drifting() -> nn.Module:
        model = Base()
        nn.init.constant_(model.layer.bias, float(next(drawn)))
        return model

    assert "layer.bias" in found(inspect(drifting), "build", "fault")


def test_builds_that_share_one_object_are_a_fault() -> None:
    model = Base()
    assert "share their tensors" in found(inspect(lambda: model), "build", "fault")


# Forward and backward


class WrongShape(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).unsqueeze(-1)


class Squeezes(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).squeeze()


class Pair(Base):
    def forward(self, x: Tensor):
        return self.layer(x), x


class Labels(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).round().long()


class Infinite(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) / 0


@pytest.mark.parametrize(
    ("source", "word"),
    [
        (WrongShape, r"(2, 3, 1); expected (2, 3)"),
        (Squeezes, r"(3,); expected (1, 3)"),
        (Pair, "returns a tuple"),
        (Labels, "not labels"),
        (Infinite, "NaN or infinity"),
    ],
)
def test_wrong_outputs_are_faults(source, word: str) -> None:
    assert word in found(inspect(source), "forward", "fault")


def test_a_second_output_in_training_alone_is_a_fault() -> None:
    class Auxiliary(Base):
        def forward(self, x: Tensor):
            return (self.layer(x), x) if self.training else self.layer(x)

    assert "in training mode" in found(inspect(Auxiliary), "backward", "fault")


def test_a_wrong_number_of_channels_comes_with_advice() -> None:
    source = partial(build, "resnet18", (1, 32, 32), 10, seed=0)
    message = found(inspect(source, shape=(1, 32, 32), classes=10), "forward", "fault")
    assert "takes 3 channels, the data have 1" in message
    assert "your own factory" in message


def test_images_too_small_for_the_model_come_with_advice() -> None:
    source = partial(build, "alexnet", (3, 28, 28), 10, seed=0)
    assert "28x28 may be too small" in found(inspect(source, shape=(3, 28, 28), classes=10), "forward", "fault")


def test_parameters_without_gradient_are_named() -> None:
    class Unused(Base):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.Linear(2, 2)

    message = found(inspect(Unused), "backward", "fault")
    assert "spare.weight, spare.bias" in message
    assert "layer" not in message


def test_an_output_cut_off_from_all_parameters_is_a_fault() -> None:
    class Detached(Base):
        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).detach()

    assert "no gradient can flow" in found(inspect(Detached), "backward", "fault")


def test_a_model_without_trainable_parameters_is_a_fault() -> None:
    inspection = inspect(lambda: Base().requires_grad_(False))
    assert "nothing to train" in found(inspection, "parameters", "fault")
    assert "layer.weight, layer.bias" in found(inspection, "fixed", "warning")
    assert (inspection.total, inspection.trainable) == (15, 0)


@pytest.mark.parametrize("factor", [1e5, 1e-9])
def test_logits_out_of_scale_are_warned_of(factor: float) -> None:
    class Scaled(Base):
        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * factor

    inspection = inspect(Scaled)
    assert inspection.ok
    assert "largest untrained logit" in found(inspection, "scale", "warning")


# Repeatability and state


def test_a_softmax_at_the_end_is_warned_of() -> None:
    class Ended(Base):
        def __init__(self, end: nn.Module) -> None:
            super().__init__()
            self.end = end

        def forward(self, x: Tensor) -> Tensor:
            return self.end(super().forward(x))

    assert "not logits" in found(inspect(lambda: Ended(nn.Softmax(dim=1))), "forward", "warning")
    # taken twice, this one is what it was
    assert levels(inspect(lambda: Ended(nn.LogSoftmax(dim=1)))) == {"ok"}


def test_randomness_in_evaluation_is_a_fault() -> None:
    class Noisy(Base):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(self.layer(x), 0.5, training=True)

    assert "twice" in found(inspect(Noisy), "repeat", "fault")


def test_state_outside_the_state_dict_is_a_fault() -> None:
    class Hidden(Base):
        """Keeps a running mean as a plain attribute."""

        def __init__(self) -> None:
            super().__init__()
            self.mean = torch.zeros(4)

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.mean = self.mean + x.mean(dim=0).detach()
            return self.layer(x - self.mean)

    assert "not in the state dict" in found(inspect(Hidden), "state", "fault")


def test_a_state_dict_that_does_not_load_is_a_fault() -> None:
    class Renaming(Base):
        def state_dict(self, *args, **kwargs):
            return {f"x.{name}": value for name, value in super().state_dict(*args, **kwargs).items()}

    assert "fails" in found(inspect(Renaming), "state", "fault")


def test_integer_buffers_are_listed_as_kept() -> None:
    class Counting(Base):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
            self.register_buffer("scale", torch.ones(3))
            self.register_buffer("grid", torch.ones(3), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.seen += len(x)
            return self.layer(x) * self.scale * self.grid

    inspection = inspect(Counting)
    assert levels(inspection) == {"ok"}
    roles = {tensor.name: tensor.role for tensor in inspection.tensors if not tensor.trainable}
    assert roles == {"seen": "kept buffer", "scale": "averaged buffer", "grid": "kept buffer"}
    messages = [finding.message for finding in inspection.findings if finding.check == "buffers"]
    assert "scale" in messages[0]
    assert "averaged" in messages[0]
    assert "never travel: seen, grid" in messages[1]


def test_an_output_that_depends_on_a_counter_is_warned_of() -> None:
    class Counted(Base):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.seen += 1
            return self.layer(x) + self.seen

    inspection = inspect(Counted)
    assert inspection.ok
    assert "does not travel" in found(inspection, "state", "warning")


# What the modules give away


def test_tied_parameters_are_named() -> None:
    class Tied(Base):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(4, 4), nn.Linear(4, 4)
            self.outer.weight = self.inner.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.outer(self.inner(x)))

    inspection = inspect(Tied)
    assert inspection.ok
    assert "inner.weight, outer.weight" in found(inspection, "tied", "warning")
    assert inspection.total == 15 + 16 + 4 + 4


def test_batch_norm_points_at_the_barrier_policy() -> None:
    source = partial(build, "resnet20", (1, 28, 28), 10, seed=0, norm="batch")
    inspection = inspect(source, shape=(1, 28, 28), classes=10)
    assert inspection.ok
    message = found(inspection, "batch norm", "warning")
    assert "barrier.batch-norm" in message
    assert "one example" in message
    assert "and 15 more" in message  # 1 + 2 · 9 + 2 layers, six of them spelt out


def test_dropout_and_other_dtypes_are_reported() -> None:
    inspection = inspect(lambda: nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.Dropout(0.0)))
    assert found(inspection, "dropout", "ok").endswith(": 1")
    double = inspect(lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 3).double()))
    assert "1.weight (float64)" in found(double, "dtype", "warning")


def test_tokens_are_whole_numbers() -> None:
    def source() -> nn.Module:
        return nn.Sequential(nn.Embedding(2, 5), nn.Flatten(), nn.Linear(35, 2))

    assert inspect_model(source, (7,), 2, tokens=True).ok
    assert not inspect_model(source, (7,), 2).ok


def test_initial_values_that_are_not_numbers_are_a_fault() -> None:
    def source() -> nn.Module:
        model = Base()
        nn.init.constant_(model.layer.bias, float("nan"))
        return model

    assert "layer.bias" in found(inspect(source), "initial values", "fault")
