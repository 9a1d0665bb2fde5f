"""Clients trained in one stack end where each would end by itself, whoever else is in the stack."""

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from local_algorithms import with_proximal_term
from torch import Tensor, nn
from toys import Two, bits, same_bits

from fedpfn.examples import Examples
from fedpfn.freezing import BitMask
from fedpfn.losses import batch_loss
from fedpfn.masks import Mask, MaskRecipe, build_mask
from fedpfn.models import build
from fedpfn.models.vit import vit
from fedpfn.params import State, read_state, trainable
from fedpfn.seeding import torch_seed
from fedpfn.training import NonFiniteError, Trained, batch_order, make_optimizer, train
from fedpfn.training.stack_checks import stackable
from fedpfn.training.stacked import Outcome, stacked_losses, train_stacked
from fedpfn.training.stacked_steps import ClientTraining, lay_out

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"name": "sgd", "lr": 0.01},
    "sgd-momentum": {"name": "sgd", "lr": 0.01, "momentum": 0.9},
    "sgd-nesterov-decay": {"name": "sgd", "lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "adam": {"name": "adam", "lr": 0.0001},
    "adam-decay": {"name": "adam", "lr": 0.0001, "weight_decay": 0.01},
    "adamw": {"name": "adamw", "lr": 0.0001, "weight_decay": 0.1},
}
EXTRAS: dict[str, dict[str, float]] = {"bare": {}, "clipped-proximal": {"clip_norm": 0.5, "proximal_mu": 0.1}}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SHAPES = {"mlp": (1, 4, 4), "cnn": (1, 18, 18), "resnet20": (1, 8, 8), "vit": (1, 4, 4)}
# clients of 30, 1, 7 and 9 examples; the steps of each in two phases
SIZES, STEPS = (30, 1, 7, 9), ((25, 25), (13, 0), (0, 20), (26, 9))
BATCH = 8

Masks = Sequence[Mask | BitMask | None]


def model_of(name: str) -> nn.Module:
    if name == "vit":
        with torch_seed(3, "model"):
            return vit((1, 4, 4), 3, depth=1, heads=2, width_multiplier=0.25)
    keys: dict[str, dict[str, Any]] = {
        "mlp": {"width": 20},
        "cnn": {"width_multiplier": 0.25},
        "resnet20": {"norm": "group", "width_multiplier": 0.25},
    }
    return build(name, SHAPES[name], 3, seed=3, **keys[name])


def examples_of(
    shape: tuple[int, ...], size: int, *, seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Examples:
    generator = np.random.default_rng([seed, size])
    inputs = torch.from_numpy(generator.normal(size=(size, *shape))).to(dtype)
    return Examples(inputs.to(device), torch.from_numpy(generator.integers(0, 3, size)).to(device))


def client(examples: Examples, steps: tuple[int, ...], *, seed: int = 0) -> ClientTraining:
    return ClientTraining(examples, batch_order(len(examples), BATCH, np.random.default_rng(seed)), steps)


def clients_of(
    shape: tuple[int, ...], *, sizes: Sequence[int] = SIZES, steps: Sequence[tuple[int, ...]] = STEPS, **kind: Any
) -> list[ClientTraining]:
    return [
        client(examples_of(shape, size, seed=number, **kind), own, seed=number)
        for number, (size, own) in enumerate(zip(sizes, steps, strict=True))
    ]


def one_by_one(model: nn.Module, clients: Sequence[ClientTraining], masks: Masks, **settings: Any) -> list[Outcome]:
    """The slow twin: a copy of the model for each client, PyTorch's plain optimiser."""
    found = []
    for one in clients:
        own = deepcopy(model)
        trained = train(
            own,
            one.examples,
            one.batches,
            list(zip(masks, one.steps, strict=True)),
            plain=True,
            **with_proximal_term(own, settings),
        )
        found.append(Outcome(read_state(own), trained))
    return found


def stacked(
    model: nn.Module, clients: Sequence[ClientTraining], masks: Masks, *, rows: int = 5, **settings: Any
) -> list[Outcome]:
    """Train in a stack in which no client fails."""
    settings = with_proximal_term(model, settings)
    algorithms = [settings.pop("algorithm")] * len(clients) if "algorithm" in settings else ()
    found = train_stacked(model, clients, masks, batch_size=BATCH, rows=rows, algorithms=algorithms, **settings)
    assert all(isinstance(outcome, Outcome) for outcome in found)
    return found  # type: ignore[return-value]


def distance(first: State, second: State) -> float:
    """Return the largest distance of two tensors of a name, in units of the second's norm."""
    assert first.keys() == second.keys()
    return max(float((first[name] - tensor).norm() / tensor.norm().clamp(min=1e-3)) for name, tensor in second.items())


# a step by hand: logits (w0, w1) for the input 1, so that the gradient for label 0 is (p0 - 1, p1), p0 = p1 = 1/2


def labelled(*labels: int) -> Examples:
    return Examples(torch.ones(len(labels), 1, dtype=torch.float64), torch.tensor(labels))


def after(*, clip: float = 0.0, mask: Mask | None = None) -> list[list[float]]:
    """One step of three clients: the first has one example of label 0, the second three, the third four of either."""
    data = (labelled(0), labelled(1, 1, 0), labelled(0, 0, 1, 1))
    found = stacked(
        Two(), [client(own, (1,)) for own in data], [mask], optimizer=make_optimizer("sgd", lr=0.5), clip_norm=clip
    )
    return [outcome.state["w"].tolist() for outcome in found]


def test_a_step_by_hand_with_batches_of_one_three_and_four() -> None:
    # gradients (-1/2, 1/2), (1/6, -1/6) and (0, 0)
    assert after() == [[1.25, 0.75], [pytest.approx(1 - 1 / 12), pytest.approx(1 + 1 / 12)], [1, 1]]


def test_each_row_is_clipped_by_the_norm_of_its_own_active_entries() -> None:
    mask = {"w": torch.tensor([True, False])}
    assert after(mask=mask) == [[1.25, 1], [pytest.approx(1 - 1 / 12), 1], [1, 1]]
    # the active norms are 1/2, 1/6 and 0
    assert after(mask=mask, clip=0.25) == [[pytest.approx(1.125, abs=1e-5), 1], [pytest.approx(1 - 1 / 12), 1], [1, 1]]


def test_a_schedule_by_hand() -> None:
    first = ClientTraining(labelled(0, 1, 0), iter([np.array([2, 0]), np.array([1])]), (1, 1))
    second = ClientTraining(labelled(1, 1), iter([np.array([1]), np.array([0, 1])]), (0, 2))
    found = lay_out([first, second], 3, 2, torch.float64)
    assert found.index.tolist() == [[[2, 0], [0, 0], [0, 0]], [[1, 1], [4, 4], [0, 0]], [[0, 0], [3, 4], [0, 0]]]
    half = [0.5, 0.5]
    assert found.weights.tolist() == [[half, [0, 0], [0, 0]], [[1, 0], [1, 0], [0, 0]], [[0, 0], half, [0, 0]]]
    assert [own.tolist() for own in found.own] == [[0, 1], [1, 2]]
    assert [sizes.tolist() for sizes in found.sizes] == [[2, 1], [1, 2]]


# the battery: a stack against one client after the other

HARD = ("clipped-proximal", 0.4)
CASES: list[tuple[str, str, str, float | None]] = [
    *(("mlp", optimizer, *extra) for optimizer in OPTIMIZERS for extra in (("bare", None), HARD)),
    ("cnn", "adam", "bare", None),
    ("cnn", "sgd-momentum", *HARD),
    ("vit", "sgd-nesterov-decay", *HARD),
    ("resnet20", "sgd-momentum", *HARD),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "optimizer", "extra", "ratio"), CASES)
def test_each_client_ends_where_it_ends_alone(
    name: str, optimizer: str, extra: str, ratio: float | None, device: str
) -> None:
    settings = OPTIMIZERS[optimizer]
    if name == "resnet20":
        # a ResNet amplifies rounding; at this rate not within 50 steps
        settings = settings | {"lr": settings["lr"] * 0.1}
    for dtype, allowed in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        model = model_of(name).to(device, dtype)
        before = read_state(model)
        recipe = None if ratio is None else MaskRecipe(1, ratio)
        recipes = [recipe, recipe.complement() if recipe else None]
        masks = [None if each is None else build_mask(each, trainable(model)) for each in recipes]
        expected, found = (
            run(
                model, clients_of(SHAPES[name], dtype=dtype, device=device), masks,
                optimizer=make_optimizer(**settings), **EXTRAS[extra],
            )
            for run in (one_by_one, stacked)
        )  # fmt: skip
        for number, (outcome, alone) in enumerate(zip(found, expected, strict=True)):
            assert distance(outcome.state, alone.state) <= allowed
            loss = pytest.approx(alone.trained.loss, rel=1e-5)
            assert outcome.trained == Trained(loss, sum(STEPS[number]), alone.trained.reach)
        assert same_bits(read_state(model), before)
        if masks[0] is not None and masks[1] is not None:
            # these two trained in one phase only
            for number, mask in ((1, masks[0]), (2, masks[1])):
                for entry, trained in mask.items():
                    moved = bits(found[number].state[entry]) != bits(before[entry])
                    assert not bool(moved[~trained].any()) and bool(moved.any())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_frozen_entries_keep_their_bits_and_rows_without_steps_all_of_theirs(optimizer: str) -> None:
    model = model_of("mlp")
    with torch.no_grad():
        model.head.weight.view(-1)[:3] = torch.tensor([-0.0, 1e-45, -3.5])
    mask = build_mask(MaskRecipe(1, 0.4), trainable(model))
    mask["head.weight"].view(-1)[:3] = False
    before = read_state(model)
    clients = clients_of(SHAPES["mlp"], sizes=(30, 9), steps=((7,), (0,)))
    settings = OPTIMIZERS[optimizer]
    worked, idle = stacked(
        model, clients, [BitMask.of(mask, before)], optimizer=make_optimizer(**settings), clip_norm=1.0, proximal_mu=0.1
    )
    for name, trained in mask.items():
        assert torch.equal(bits(worked.state[name])[~trained], bits(before[name])[~trained])
        assert bool((worked.state[name] != before[name])[trained].any())
    assert same_bits(idle.state, before) and idle.trained.steps == 0 and math.isnan(idle.trained.loss)


# who shares the stack


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", ["mlp", "vit", "cnn"])
@pytest.mark.parametrize("optimizer", ["sgd-nesterov-decay", "adam"])
def test_a_result_does_not_depend_on_who_shares_the_stack(
    optimizer: str, name: str, dtype: torch.dtype, allowed: float, device: str
) -> None:
    """To the bit in the same row; in another one to rounding, since a CPU's products sum by where a row lies."""
    settings: dict[str, Any] = {"optimizer": make_optimizer(**OPTIMIZERS[optimizer]), "clip_norm": 0.5}
    model = model_of(name).to(device, dtype)
    mask = build_mask(MaskRecipe(1, 0.4), trainable(model))

    def states(*chosen: int) -> dict[int, State]:
        # each stack's rows in the order of the steps
        clients = clients_of(SHAPES[name], steps=((6,), (4,), (5,), (3,)), device=device, dtype=dtype)
        found = stacked(model, [clients[number] for number in chosen], [mask], rows=3, **settings)
        return {number: outcome.state for number, outcome in zip(chosen, found, strict=True)}

    together, fewer, moved, alone = states(0, 1, 2), states(3, 0), states(2, 1, 3), states(1)
    assert same_bits(fewer[0], together[0])
    for other, number in ((moved, 2), (moved, 1), (alone, 1)):
        assert distance(other[number], together[number]) <= allowed
    assert distance(fewer[3], moved[3]) <= allowed


def test_more_clients_than_rows_come_back_in_their_order() -> None:
    model = model_of("mlp")
    steps = ((2,), (9,), (4,), (7,), (1,))
    settings = {"optimizer": make_optimizer("sgd", lr=0.1)}
    expected, found = (
        run(model, clients_of(SHAPES["mlp"], sizes=(9, 20, 7, 12, 3), steps=steps), [None], **settings, **keys)
        for run, keys in ((one_by_one, {}), (stacked, {"rows": 2}))
    )
    assert [outcome.trained.steps for outcome in found] == [2, 9, 4, 7, 1]
    assert all(distance(one.state, other.state) < 1e-5 for one, other in zip(found, expected, strict=True))


# failures


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_a_client_with_a_nan_fails_alone_and_says_what_it_says_alone(name: str) -> None:
    model, settings = model_of(name), {"optimizer": make_optimizer("sgd", lr=0.1, momentum=0.9), "clip_norm": 1.0}

    def clients(value: float) -> list[ClientTraining]:
        made = clients_of(SHAPES[name], sizes=(30, 20, 9), steps=((9,), (8,), (3,)))
        made[1].examples.inputs[11] = value
        return made

    well = stacked(model, clients(0.0), [None], rows=3, **settings)
    first, second, third = train_stacked(model, clients(math.nan), [None], batch_size=BATCH, rows=3, **settings)
    with pytest.raises(NonFiniteError) as caught:
        one_by_one(model, clients(math.nan)[1:2], [None], **settings)
    assert isinstance(second, NonFiniteError) and str(second) == str(caught.value)
    assert "the loss is nan at local step" in str(second) and str(second).endswith(" of 8")
    for outcome, untouched in ((first, well[0]), (third, well[2])):
        assert isinstance(outcome, Outcome) and same_bits(outcome.state, untouched.state)


def test_a_weight_that_is_not_finite_at_the_end_is_named() -> None:
    settings = {"optimizer": make_optimizer("sgd", lr=3e38, weight_decay=10.0)}
    (found,) = train_stacked(
        model_of("mlp"),
        clients_of(SHAPES["mlp"], sizes=(9,), steps=((1,),)),
        [None],
        batch_size=BATCH,
        rows=2,
        **settings,
    )
    assert isinstance(found, NonFiniteError) and str(found) == "linear1.weight is not finite after local step 1 of 1"


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([[0]], "a client of 2 steps has batches for 1"),
        ([[0], []], f"1 to {BATCH} examples; a client has one of 0"),
        ([[0], [0] * 9], f"1 to {BATCH} examples; a client has one of 9"),
        ([[0], [1, 5]], r"a client of 5 examples has a batch with indices out of range: \[1, 5\]"),
    ],
)
def test_batches_that_do_not_fit_are_errors(batches: list[list[int]], message: str) -> None:
    clients = [
        ClientTraining(examples_of(SHAPES["mlp"], 5), iter([np.array(each, dtype=np.int64) for each in batches]), (2,)),
        client(examples_of(SHAPES["mlp"], 9), (1,)),
    ]
    with pytest.raises(ValueError, match=message):
        stacked(model_of("mlp"), clients, [None], optimizer=make_optimizer("sgd", lr=0.1))


def test_phases_without_steps_and_optimizers_that_mix_entries_are_errors() -> None:
    model, clients = model_of("mlp"), clients_of(SHAPES["mlp"])
    with pytest.raises(ValueError, match="each client its steps for each of the 1 phases"):
        stacked(model, clients, [None], optimizer=make_optimizer("sgd", lr=0.1))
    with pytest.raises(ValueError, match="under SGD, Adam and AdamW, not under RMSprop"):
        stacked(model, clients, [None, None], optimizer=lambda parameters: torch.optim.RMSprop(parameters, lr=0.1))


# models and losses


class Tied(nn.Module):
    """One weight used twice, and one not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.unused = nn.Linear(3, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))  # type: ignore[no-any-return]


def test_tied_and_unused_parameters_train_as_alone() -> None:
    with torch_seed(0, "test"):
        model = Tied().double()
    assert stackable(model, examples_of((4,), 3)) is None
    settings = {"optimizer": make_optimizer(**OPTIMIZERS["adamw"]), "proximal_mu": 0.1, "clip_norm": 1.0}
    expected, found = (
        run(model, clients_of((4,), dtype=torch.float64), [None, None], **settings) for run in (one_by_one, stacked)
    )
    assert all(distance(one.state, other.state) <= 1e-9 for one, other in zip(found, expected, strict=True))
    # no gradient, no decay
    assert same_bits({"unused.weight": found[0].state["unused.weight"]}, {"unused.weight": model.unused.weight})


def test_images_are_decoded_and_the_model_keeps_its_modes() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    model[1].train()

    def clients() -> list[ClientTraining]:
        pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (9, 1, 4, 4)).astype(np.uint8))
        return [client(Examples(pixels, torch.arange(9) % 3, (0.5,), (0.25,)), (4,))]

    settings = {"optimizer": make_optimizer("sgd", lr=0.1)}
    (found,) = stacked(model, clients(), [None], **settings)
    assert [module.training for module in model.modules()] == [False, False, True]
    assert all(parameter.grad is None for parameter in model.parameters())
    (alone,) = one_by_one(model, clients(), [None], **settings)
    assert distance(found.state, alone.state) < 1e-5


@pytest.mark.parametrize("shape", [(), (2,)])
def test_a_regression_trains_as_alone(shape: tuple[int, ...]) -> None:
    outputs = shape[0] if shape else 1
    with torch_seed(0, "test"):
        model = nn.Linear(4, outputs).double()

    def clients() -> list[ClientTraining]:
        made = clients_of((4,), dtype=torch.float64)
        generator = np.random.default_rng(0)
        return [
            ClientTraining(
                Examples(one.examples.inputs, torch.from_numpy(np.array(generator.normal(size=(size, *shape))))),
                one.batches,
                one.steps,
            )
            for one, size in zip(made, SIZES, strict=True)
        ]

    assert stackable(model, clients()[0].examples) is None
    settings = {"optimizer": make_optimizer("sgd", lr=0.05)}
    expected, found = (run(model, clients(), [None, None], **settings) for run in (one_by_one, stacked))
    assert all(distance(one.state, other.state) <= 1e-9 for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("labels", [torch.tensor([0, 2, 1]), torch.tensor([0.5, -1.0, 2.0])])
def test_losses_of_equal_weights_are_the_batch_loss(labels: Tensor) -> None:
    model = nn.Linear(4, 1 if labels.is_floating_point() else 3).double()
    inputs = examples_of((4,), 3, dtype=torch.float64).inputs
    stack = {name: parameter.detach()[None] for name, parameter in trainable(model).items()}
    found = stacked_losses(model, stack, inputs[None], labels[None], torch.full((1, 3), 1 / 3, dtype=torch.float64))
    torch.testing.assert_close(found[0], batch_loss(model(inputs), labels).detach(), rtol=1e-12, atol=0)


# which models can be stacked


@pytest.mark.parametrize("name", SHAPES)
def test_built_in_networks_without_batch_norm_can_be_stacked(name: str) -> None:
    model = model_of(name)
    before = read_state(model)
    for size in (1, 6):
        assert stackable(model, examples_of(SHAPES[name], size)) is None
    assert same_bits(read_state(model), before)


class Calling(nn.Module):
    """A linear layer after a function of one's own."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.head, self.function = nn.Linear(4, 3), function
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(x))  # type: ignore[no-any-return]


class Counting(Calling):
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


class Positions(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 3)
        self.register_buffer("positions", torch.zeros(4))


def drop_some(x: Tensor) -> Tensor:
    return nn.functional.dropout(x, 0.5)


def only_positive(x: Tensor) -> Tensor:
    return x if bool((x > 0).all()) else x.abs()


def renormed(x: Tensor) -> Tensor:
    """What vmap takes only by a loop over the rows."""
    return torch.renorm(x, 2, 0, 1.0)


def less_the_mean(x: Tensor) -> Tensor:
    return x - x.mean(dim=0)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), "BatchNorm1d 1 makes the examples of a batch depend"),
        (nn.Sequential(nn.Dropout(0.1), nn.Linear(4, 3)), "Dropout 0 draws different numbers"),
        (Positions(), "the buffer positions may change in training"),
        (Counting(torch.tanh), "the buffer calls changes in training"),
        (Calling(drop_some), "a trial in a stack failed: RuntimeError: "),
        (Calling(only_positive), "a trial in a stack failed: RuntimeError: "),
        (Calling(renormed), "a trial in a stack failed: UserWarning: There is a performance drop"),
        (Calling(less_the_mean), "its losses in a stack are not those of one client after the other"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_with_the_reason(model: nn.Module, reason: str) -> None:
    drawn = torch.get_rng_state()
    found = stackable(model, examples_of((4,), 6))
    assert found is not None and found.startswith(reason) and "\n" not in found
    assert torch.equal(torch.get_rng_state(), drawn)


def test_dropout_of_nothing_is_no_dropout_and_a_function_that_fits_passes() -> None:
    assert stackable(nn.Sequential(nn.Dropout(0.0), nn.Linear(4, 3)), examples_of((4,), 6)) is None
    assert stackable(Calling(torch.tanh), examples_of((4,), 6)) is None


def test_models_on_tokens_are_tried_on_tokens() -> None:
    tokens = Examples(torch.arange(12).reshape(6, 2) % 5, torch.arange(6) % 3)
    for sparse in (False, True):
        model = nn.Sequential(nn.Embedding(5, 4, sparse=sparse), nn.Flatten(), nn.Linear(8, 3))
        assert stackable(model, tokens) == ("Embedding 0 has sparse gradients" if sparse else None)
    reason = stackable(build("lstm", (2,), 3, seed=0, width_multiplier=0.1), tokens)
    assert reason is not None and reason.startswith("a trial in a stack failed: ")
