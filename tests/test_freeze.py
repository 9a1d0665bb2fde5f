"""``clients.freeze`` in one's own loop: what a round freezes stays to the bit, under every optimiser of PyTorch."""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import flower_apps as apps
import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp.strategy import Strategy
from torch import Tensor, nn

from clients import freeze
from experiments.runtime.in_process import InProcessGrid
from fedpfn.examples import Examples
from fedpfn.masks import build_mask, union
from fedpfn.params import State
from fedpfn.protocol import CONFIG, PARAMETERS, PLAN
from fedpfn.schedules import Plan, decode_plan, phase_steps
from fedpfn.training import train
from strategies import FedAvg, FedPFN, FedPNU

STEPS = 5


# every optimiser of torch.optim, with weight decay and momentum where it has them; one that comes later fails the
# first test until it is here
OPTIMIZERS: dict[type[torch.optim.Optimizer], dict[str, Any]] = {
    torch.optim.Adadelta: {"lr": 1.0, "weight_decay": 0.1},
    torch.optim.Adafactor: {"lr": 0.01, "weight_decay": 0.1},
    torch.optim.Adagrad: {"lr": 0.01, "weight_decay": 0.1, "lr_decay": 0.01, "initial_accumulator_value": 0.1},
    torch.optim.Adam: {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True},
    torch.optim.AdamW: {"lr": 0.01, "weight_decay": 0.1},
    torch.optim.Adamax: {"lr": 0.01, "weight_decay": 0.1},
    torch.optim.ASGD: {"lr": 0.05, "weight_decay": 0.1, "lambd": 0.1},
    torch.optim.Muon: {"lr": 0.01, "weight_decay": 0.1, "momentum": 0.9},
    torch.optim.NAdam: {"lr": 0.01, "weight_decay": 0.1, "momentum_decay": 0.01},
    torch.optim.RAdam: {"lr": 0.01, "weight_decay": 0.1},
    torch.optim.RMSprop: {"lr": 0.01, "weight_decay": 0.1, "momentum": 0.9, "centered": True},
    torch.optim.Rprop: {"lr": 0.01},
    torch.optim.SGD: {"lr": 0.05, "weight_decay": 0.1, "momentum": 0.9, "nesterov": True},
}
REFUSED = {torch.optim.LBFGS: "a closure", torch.optim.SparseAdam: "sparse gradients"}

# it takes matrices only
MATRICES_ONLY = {torch.optim.Muon}
PLANS = {"fedpfn": FedPFN(mask_ratio=0.4), "fedpnu": FedPNU(mask_ratio=0.4, phase_share=0.6)}

MakeOptimizer = Callable[[Iterable[Tensor]], torch.optim.Optimizer]


def maker(kind: type[torch.optim.Optimizer], **settings: Any) -> MakeOptimizer:
    def make(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        own = [parameter for parameter in parameters if kind not in MATRICES_ONLY or parameter.ndim == 2]
        return kind(own, **settings)  # type: ignore[call-arg]

    return make


every_optimizer = pytest.mark.parametrize(
    "make", [pytest.param(maker(kind, **settings), id=kind.__name__) for kind, settings in OPTIMIZERS.items()]
)
both_plans = pytest.mark.parametrize("strategy", PLANS.values(), ids=PLANS)


def message_of(strategy: Strategy, model: nn.Module, server_round: int = 1) -> Message:
    """Return the TRAIN message that the strategy sends for ``model``."""
    arrays = ArrayRecord({name: apps.Array(tensor.numpy().copy()) for name, tensor in model.state_dict().items()})
    grid = InProcessGrid(apps.client_app(), {}, nodes=2)
    first, *_ = strategy.configure_train(server_round, arrays, ConfigRecord(), grid)
    return first


def plan_of(message: Message) -> Plan:
    return decode_plan(str(message.content.config_records[CONFIG][PLAN]))


def steps_of(message: Message, steps: int = STEPS) -> list[int]:
    return list(phase_steps(tuple(phase.share for phase in plan_of(message)), steps))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    inputs, labels = apps.batches(0)[number % apps.BATCHES]
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(inputs), labels).backward()
    optimizer.step()


def state_of(model: nn.Module) -> State:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def masks_of(message: Message, model: nn.Module) -> list[State]:
    parameters = dict(model.named_parameters())
    return [build_mask(phase.mask, parameters) for phase in plan_of(message)]


def moved(before: State, after: State) -> State:
    """Return which entries differ in their bits."""
    return {name: before[name].view(torch.int32) != after[name].view(torch.int32) for name in before}


def test_every_optimizer_of_torch_is_known() -> None:
    kinds = {kind for kind in vars(torch.optim).values() if isinstance(kind, type)}
    optimizers = {kind for kind in kinds if issubclass(kind, torch.optim.Optimizer)} - {torch.optim.Optimizer}
    assert optimizers == OPTIMIZERS.keys() | REFUSED.keys()


@both_plans
@every_optimizer
def test_frozen_entries_stay_and_active_ones_move_in_every_phase(strategy: Strategy, make: MakeOptimizer) -> None:
    model = apps.net()
    message, optimizer = message_of(strategy, model), make(model.parameters())
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    names = [name for name, parameter in model.named_parameters() if id(parameter) in trained]
    number = 0
    with freeze(model, optimizer, message, steps=STEPS) as frozen:
        for phase, (mask, steps) in enumerate(zip(masks_of(message, model), steps_of(message), strict=True)):
            before = state_of(model)
            for _ in range(steps):
                step(model, optimizer, number)
                number += 1
                assert frozen.phase == phase
            changed = moved(before, state_of(model))
            assert not any(bool((changed[name] & ~mask[name]).any()) for name in changed)
            active = torch.cat([changed[name][mask[name]] for name in names])
            # a ReLU that is dead on the batches has no gradient, and Rprop then does not move its weights
            assert active.float().mean() > 0.5
    assert (number, frozen.steps) == (STEPS, STEPS)


@both_plans
@every_optimizer
def test_a_loop_with_freeze_gives_the_bits_of_the_projects_kernel(strategy: Strategy, make: MakeOptimizer) -> None:
    mine = apps.net()
    other, message = copy.deepcopy(mine), message_of(strategy, mine)
    optimizer = make(mine.parameters())
    freeze(mine, optimizer, message, steps=STEPS)
    for number in range(STEPS):
        step(mine, optimizer, number)

    inputs, labels = (torch.cat(parts) for parts in zip(*apps.batches(0), strict=True))
    batches = (np.arange(8) + 8 * (number % apps.BATCHES) for number in range(STEPS))
    phases = list(zip(masks_of(message, other), steps_of(message), strict=True))
    train(other, Examples(inputs, labels), batches, phases, optimizer=make, plain=True)
    assert not any(bool(differs.any()) for differs in moved(state_of(mine), state_of(other)).values())


@pytest.mark.parametrize("used", [False, True], ids=["new", "used before"])
@every_optimizer
def test_the_optimizer_starts_afresh_in_the_second_phase(make: MakeOptimizer, used: bool) -> None:
    """The steps of the second phase are those of a new optimiser under the second mask alone."""
    model = apps.net()
    optimizer = make(model.parameters())
    if used:
        step(model, optimizer, 2)
    message = message_of(PLANS["fedpnu"], model)
    frozen = freeze(model, optimizer, message, steps=STEPS)
    early, late = steps_of(message)
    for number in range(early):
        step(model, optimizer, number)
    assert frozen.phase == 0

    twin = copy.deepcopy(model)
    other, second, before = make(twin.parameters()), masks_of(message, model)[1], state_of(model)
    for number in range(early, early + late):
        step(model, optimizer, number)
        # the obvious way: gradients, step, and the frozen entries by hand
        inputs, labels = apps.batches(0)[number % apps.BATCHES]
        other.zero_grad()
        nn.functional.cross_entropy(twin(inputs), labels).backward()
        for name, parameter in twin.named_parameters():
            assert parameter.grad is not None
            parameter.grad[~second[name]] = 0
        other.step()
        with torch.no_grad():
            for name, parameter in twin.named_parameters():
                parameter[~second[name]] = before[name][~second[name]]
    assert frozen.phase == 1
    assert not any(bool(differs.any()) for differs in moved(state_of(model), state_of(twin)).values())


# also where nothing is frozen, so that it does not come up rounds later
@pytest.mark.parametrize("strategy", [FedPFN(), FedAvg()], ids=["plan", "no plan"])
@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.__name__)
def test_an_optimizer_that_a_mask_cannot_be_put_on_is_refused(kind: Any, strategy: Strategy) -> None:
    model = apps.net()
    with pytest.raises(TypeError, match=f"{kind.__name__} needs {REFUSED[kind]}"):
        freeze(model, kind(model.parameters()), message_of(strategy, model))


@pytest.mark.parametrize("strategy", [FedPFN(), FedAvg()], ids=["plan", "no plan"])
def test_a_closure_is_refused_before_anything_moves(strategy: Strategy) -> None:
    model = apps.net()
    optimizer = apps.adamw(model.parameters())
    freeze(model, optimizer, message_of(strategy, model))
    before = state_of(model)
    for call in (lambda: optimizer.step(lambda: 0.0), lambda: optimizer.step(closure=lambda: 0.0)):
        with pytest.raises(TypeError, match=r"AdamW.step was called with a closure.*call step\(\) without"):
            call()
    optimizer.step(None)
    assert not any(bool(differs.any()) for differs in moved(before, state_of(model)).values())


@pytest.mark.parametrize(
    "strategy", [FedAvg(), FedPFN(mask_ratio=0), FedPFN(warmup_rounds=1)], ids=["no plan", "ratio 0", "warm-up"]
)
def test_where_nothing_is_to_be_frozen_training_is_as_it_was(strategy: Strategy) -> None:
    model, plain = apps.net(), apps.net()
    message = message_of(strategy, model)
    optimizer, other = apps.adamw(model.parameters()), apps.adamw(plain.parameters())
    frozen = freeze(model, optimizer, message, steps=STEPS)
    for number in range(STEPS):
        step(model, optimizer, number)
        step(plain, other, number)
    assert (frozen.steps, frozen.phase) == (STEPS, 0)
    assert not any(bool(differs.any()) for differs in moved(state_of(model), state_of(plain)).values())


def test_arrays_must_be_loaded_first() -> None:
    model = apps.net()
    message = message_of(FedPFN(), model)
    with torch.no_grad():
        model.get_parameter("last.bias")[0] += 1
    with pytest.raises(ValueError, match=r"last\.bias differs from the message's: load"):
        freeze(model, apps.adamw(model.parameters()), message)


def test_a_name_that_the_model_lacks_is_refused() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.final = nn.Linear(6, 8), nn.Linear(8, 3)

    other = Other()
    with pytest.raises(ValueError, match=r"masks last\.weight, last\.bias, which the model does not have"):
        freeze(other, apps.adamw(other.parameters()), message_of(FedPFN(), apps.net()))


def test_a_tensor_under_two_names_is_refused_until_one_of_them_is_left_out() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
            self.down.weight = self.up.weight

    tied = Tied()
    with pytest.raises(ValueError, match=r"up\.weight and down\.weight are one tensor.*leave one of them out"):
        freeze(tied, apps.adamw(tied.parameters()), message_of(FedPFN(), tied))
    freeze(tied, apps.adamw(tied.parameters()), message_of(FedPFN(parameters=["up.weight"]), tied))


@pytest.mark.parametrize("steps", [None, 0], ids=["none", "zero"])
def test_a_plan_of_several_phases_needs_the_number_of_steps(steps: int | None) -> None:
    model = apps.net()
    optimizer = apps.adamw(model.parameters())
    with pytest.raises(ValueError, match=r"plan has 2 phases: pass steps=len\(loader\) \* epochs"):
        freeze(model, optimizer, message_of(PLANS["fedpnu"], model), steps=steps)
    # one phase never ends
    freeze(model, optimizer, message_of(FedPFN(), model))


def test_more_steps_than_the_phases_were_divided_over_are_refused() -> None:
    model = apps.net()
    optimizer = apps.adamw(model.parameters())
    freeze(model, optimizer, message_of(PLANS["fedpnu"], model), steps=2)
    step(model, optimizer, 0)
    step(model, optimizer, 1)
    with pytest.raises(RuntimeError, match=r"takes step 3, but freeze\(\.\.\., steps=2\)"):
        step(model, optimizer, 2)


def test_a_single_step_is_the_first_phases() -> None:
    model = apps.net()
    optimizer, message = apps.adamw(model.parameters()), message_of(FedPNU(mask_ratio=0.4), model)
    before, frozen = state_of(model), freeze(model, optimizer, message, steps=1)
    step(model, optimizer, 0)
    first = masks_of(message, model)[0]
    changed = moved(before, state_of(model))
    assert frozen.phase == 0 and not any(bool((changed[name] & ~first[name]).any()) for name in changed)


@pytest.mark.parametrize("earlier", [FedPFN(mask_ratio=0.9, seed=7), FedAvg()], ids=["masked", "unmasked"])
def test_the_next_rounds_freeze_replaces_the_hooks(earlier: Strategy) -> None:
    model = apps.net()
    optimizer = apps.adamw(model.parameters())
    old = freeze(model, optimizer, message_of(earlier, model))
    step(model, optimizer, 0)
    message, before = message_of(FedPFN(mask_ratio=0.4), model, 2), state_of(model)
    new = freeze(model, optimizer, message)
    step(model, optimizer, 1)
    assert (old.steps, new.steps) == (1, 1)
    changed, mask = moved(before, state_of(model)), masks_of(message, model)[0]
    assert not any(bool((changed[name] & ~mask[name]).any()) for name in changed)
    # and moves what the earlier round froze
    assert torch.cat([changed[name][mask[name]] for name in changed]).float().mean() > 0.5


@pytest.mark.parametrize("how", ["remove", "with", "error"])
def test_hooks_come_off(how: str) -> None:
    model = apps.net()
    optimizer, message = apps.adamw(model.parameters()), message_of(FedPFN(mask_ratio=0.4), model)
    if how == "remove":
        frozen = freeze(model, optimizer, message)
        step(model, optimizer, 0)
        frozen.remove()
        frozen.remove()
    else:
        with pytest.raises(KeyError), freeze(model, optimizer, message) as frozen:
            step(model, optimizer, 0)
            raise KeyError
    before = state_of(model)
    step(model, optimizer, 1)
    assert frozen.steps == 1
    assert torch.cat([differs.flatten() for differs in moved(before, state_of(model)).values()]).float().mean() > 0.9


@both_plans
def test_a_learning_rate_scheduler_works_as_without(strategy: Strategy) -> None:
    model = apps.net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    message, before = message_of(strategy, model), state_of(model)
    frozen = freeze(model, optimizer, message, steps=STEPS)
    for number in range(STEPS):
        step(model, optimizer, number)
        scheduler.step()
    assert frozen.steps == STEPS
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**STEPS)
    changed, active = moved(before, state_of(model)), union(masks_of(message, model))
    assert not any(bool((changed[name] & ~active[name]).any()) for name in changed)


def test_parameters_that_do_not_train_stay() -> None:
    model = apps.net()
    model.get_parameter("first.weight").requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, message, before = apps.adamw(trained), message_of(FedPFN(mask_ratio=0.4), model), state_of(model)
    freeze(model, optimizer, message)
    step(model, optimizer, 0)
    changed, mask = moved(before, state_of(model)), masks_of(message, model)[0]
    assert not bool(changed["first.weight"].any())
    assert not any(bool((changed[name] & ~mask[name]).any()) for name in changed)
    assert bool(changed["last.weight"].any())


def test_gradients_of_frozen_entries_are_zero_whatever_they_were() -> None:
    model = apps.net()
    optimizer, message = apps.adamw(model.parameters()), message_of(FedPFN(mask_ratio=0.4), model)
    freeze(model, optimizer, message)
    mask, before = masks_of(message, model)[0], state_of(model)
    for name, parameter in model.named_parameters():
        parameter.grad = torch.where(mask[name], 1.0, torch.inf)
    optimizer.step()
    after = state_of(model)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.equal(parameter.grad, mask[name].float())
        assert torch.equal(after[name][~mask[name]], before[name][~mask[name]])
        assert bool((after[name] != before[name])[mask[name]].all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_other_dtypes_freeze_as_well(dtype: torch.dtype) -> None:
    model = apps.net().to(dtype)
    optimizer, message = apps.adamw(model.parameters()), message_of(FedPFN(mask_ratio=0.4), model)
    before = state_of(model)
    freeze(model, optimizer, message)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, mask in masks_of(message, model)[0].items():
        assert torch.equal((state_of(model)[name] == before[name]), ~mask)


def test_a_plan_that_does_not_parse_is_refused() -> None:
    model = apps.net()
    message = message_of(FedPFN(), model)
    config: Any = {**message.content.config_records[CONFIG], PLAN: "[]"}
    message.content = RecordDict({**message.content, CONFIG: ConfigRecord(config)})
    assert PARAMETERS in config
    with pytest.raises(ValueError, match="round plan"):
        freeze(model, apps.adamw(model.parameters()), message)


def test_two_optimizers_over_two_halves_of_a_model() -> None:
    model = apps.net()
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    optimizers = [torch.optim.Muon(matrices, lr=0.01), torch.optim.AdamW(vectors, lr=0.01, weight_decay=0.1)]
    message, before = message_of(FedPFN(mask_ratio=0.4), model), state_of(model)
    for optimizer in optimizers:
        freeze(model, optimizer, message)
    for number in range(STEPS):
        inputs, labels = apps.batches(0)[number % apps.BATCHES]
        model.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        for optimizer in optimizers:
            optimizer.step()
    changed, mask = moved(before, state_of(model)), masks_of(message, model)[0]
    assert not any(bool((changed[name] & ~mask[name]).any()) for name in changed)
    assert torch.cat([changed[name][mask[name]] for name in changed]).float().mean() > 0.8


def test_a_fused_optimizer_freezes_as_well() -> None:
    model = apps.net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1, fused=True)
    message, before = message_of(FedPFN(mask_ratio=0.4), model), state_of(model)
    freeze(model, optimizer, message)
    for number in range(STEPS):
        step(model, optimizer, number)
    changed, mask = moved(before, state_of(model)), masks_of(message, model)[0]
    assert not any(bool((changed[name] & ~mask[name]).any()) for name in changed)
