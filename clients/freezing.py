"""Train under the round's mask in your own training loop, with any PyTorch optimiser.

``freeze`` hooks the optimiser: before a step, it sets the gradients of frozen entries to 0, so that they stay out of
the moments (a norm that the loop clips before the step still counts them); after the step, frozen entries get their
value of w_t back, to the bit, whatever weight decay or momentum did to them. If a plan has several phases (FedPNU), the
masks change automatically after their share of the steps, and the optimiser's moments start afresh: momentum
accumulated by entries that freeze must not carry over.
"""

from collections.abc import Mapping
from itertools import accumulate
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from flwr.app import Message
from torch import Tensor, nn

from clients.records import decode
from fedpfn.freezing import Freeze
from fedpfn.masks import build_mask
from fedpfn.protocol import CONFIG, PARAMETERS, PLAN
from fedpfn.schedules import Plan, phase_steps, plan_in

_hooked: "WeakKeyDictionary[torch.optim.Optimizer, Frozen]" = WeakKeyDictionary()


class Frozen:
    """The hooks of one round on one optimiser; ``remove`` removes them, as does leaving a ``with`` block.

    Parameters
    ----------
    parameters
        The live parameters that the round masks, by name; frozen entries keep their present values.
    optimizer
        The optimiser to hook.
    plan
        The round's plan, whose first phase starts at once.
    steps
        Number of steps that the phases divide; None for a plan of one phase, which never ends.

    Attributes
    ----------
    steps
        Number of the optimiser's steps so far.
    phase
        Index of the current phase of the plan.
    """

    def __init__(
        self, parameters: dict[str, Tensor], optimizer: torch.optim.Optimizer, plan: Plan, steps: int | None
    ) -> None:
        self.steps, self.phase = 0, 0
        self._parameters, self._optimizer, self._plan = parameters, optimizer, plan
        shares = tuple(phase.share for phase in plan)
        # a plan of one phase never ends and needs no number of steps
        self._planned = steps
        self._ends = list(accumulate(phase_steps(shares, steps))) if steps is not None else []
        self._freeze = Freeze(parameters, None)
        self._enter(self._phase_at(0))
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def remove(self) -> None:
        """Remove the hooks from the optimiser; frozen entries keep their values."""
        for hook in self._hooks:
            hook.remove()

    def __enter__(self) -> "Frozen":
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def _phase_at(self, step: int) -> int:
        """Return the phase of step number ``step``, counted from 0."""
        return next((phase for phase, end in enumerate(self._ends) if step < end), len(self._plan) - 1)

    def _enter(self, phase: int) -> None:
        self.phase = phase
        recipe = self._plan[phase].mask
        mask = None if recipe is None else build_mask(recipe, self._parameters)
        self._freeze = Freeze(self._parameters, mask)

    def _before_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if any(argument is not None for argument in (*args[1:], *kwargs.values())):
            raise TypeError(
                f"{type(optimizer).__name__}.step was called with a closure, which computes gradients that freeze "
                "cannot mask: compute the gradients before the step and call step() without arguments"
            )
        if len(self._plan) > 1 and self._planned is not None and self.steps >= self._planned:
            raise RuntimeError(
                f"the optimiser takes step {self.steps + 1}, but freeze(..., steps={self._planned}) divided the phases "
                "of the round's plan over fewer: pass the number of steps that the loop takes"
            )
        if (phase := self._phase_at(self.steps)) != self.phase:
            self._enter(phase)
            _start_afresh(optimizer)
        self._freeze.mask_gradients()

    def _after_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._freeze.restore()
        self.steps += 1


def _start_afresh(optimizer: torch.optim.Optimizer) -> None:
    optimizer.state.clear()
    if isinstance(optimizer, torch.optim.Adagrad):
        # with PyTorch 2.11 it needs the state that it makes at construction
        groups = [dict(group) for group in optimizer.param_groups]
        start = optimizer.defaults["initial_accumulator_value"]
        optimizer.state.update(torch.optim.Adagrad(groups, initial_accumulator_value=start).state)


def freeze(model: nn.Module, optimizer: torch.optim.Optimizer, message: Message, *, steps: int | None = None) -> Frozen:
    """Keep the entries that the round freezes fixed in every step that ``optimizer`` takes from now on.

    Call it after loading the message's arrays into ``model`` and before the first step. A message without a plan, from
    a server without a shared mask, freezes nothing.

    Parameters
    ----------
    model
        The model, holding the message's arrays, on the device where it trains.
    optimizer
        Any optimiser of ``torch.optim`` over the model's parameters that takes dense gradients and no closure. Earlier
        hooks of ``freeze`` on it are removed.
    message
        The TRAIN message of the round.
    steps
        Number of steps that the loop will take, ``len(loader) * epochs``; required if the plan has several phases.

    Returns
    -------
    Frozen
        The hooks; remove them if the optimiser outlives the round.

    Raises
    ------
    TypeError
        For an optimiser that needs a closure (LBFGS) or sparse gradients (SparseAdam).
    ValueError
        For a plan that does not parse or that needs ``steps``; for names that are not the model's parameters; and if
        the model does not hold the message's arrays.
    """
    if isinstance(optimizer, torch.optim.LBFGS | torch.optim.SparseAdam):
        needs = "a closure" if isinstance(optimizer, torch.optim.LBFGS) else "sparse gradients"
        raise TypeError(f"{type(optimizer).__name__} needs {needs}, which cannot be masked; choose another optimiser")
    config: Mapping[str, Any] = message.content.config_records.get(CONFIG, {})
    plan = plan_in(config)
    if (earlier := _hooked.pop(optimizer, None)) is not None:
        earlier.remove()
    if len(plan) > 1 and (steps is None or steps < 1):
        raise ValueError(f"the round's plan has {len(plan)} phases: pass steps=len(loader) * epochs to freeze")
    parameters = _masked_parameters(model, cast(list[str], config[PARAMETERS])) if PLAN in config else {}
    _require_loaded(parameters, message)
    hooks = Frozen(parameters, optimizer, plan, steps)
    _hooked[optimizer] = hooks
    return hooks


def _masked_parameters(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """Return the parameters that the server masks, trainable or not."""
    everyone = dict(model.named_parameters(remove_duplicate=False))
    if unknown := [name for name in names if name not in everyone]:
        raise ValueError(
            f"the server masks {', '.join(unknown)}, which the model does not have as parameters: name those it has in "
            "SharedMask(..., parameters=[...])"
        )
    owners: dict[int, str] = {}
    for name in names:
        first = owners.setdefault(id(everyone[name]), name)
        if first != name:
            raise ValueError(
                f"{first} and {name} are one tensor and would get two masks: leave one of them out of "
                "SharedMask(..., parameters=[...])"
            )
    return {name: everyone[name] for name in names}


def _require_loaded(parameters: dict[str, Tensor], message: Message) -> None:
    """Raise ``ValueError`` if the parameters differ from the message's: they would be anchored at other values."""
    for record in message.content.array_records.values():
        for name, parameter in parameters.items():
            if name in record and not torch.equal(parameter.detach().cpu(), decode(record[name])):
                raise ValueError(
                    f"{name} differs from the message's: load the message's arrays into the model before freeze"
                )
