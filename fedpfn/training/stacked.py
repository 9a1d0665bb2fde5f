"""Train several clients at once: the sequential kernel's mathematics on stacked weights, one client per row.

A GPU runs a small model's step far below its capacity. The clients of a round start from the same weights and then take
separate steps, so with their weights stacked as W of shape (rows, *w), one backward pass through
sum_r sum_i v_ri l(w_r; x_ri, y_ri), v = 1 / |batch|, gives each row the gradient that ``train`` would give that client.
A correction of gradients, the mask and the optimiser act entry by entry, so they are the sequential kernel's own;
clipping is done row by row. If learning rates follow schedules, a row's rate is f_r times the optimiser's: the steps of
SGD, Adam and AdamW are proportional to the rate, so that W_r + f_r (W'_r - W_r) is the result of that rate. A batch
shorter than the others is padded with its first example at weight v = 0. A client that has fewer steps than its
neighbours is copied out after its last one; later results of its row are discarded.

Shapes are the same at each step of each stack, ``rows`` clients with ``batch_size`` examples, so that every kernel
computes the same whichever clients share the stack: a client's result in a given row is bit-identical. In another row
it is the same up to rounding: a CPU's batched products sum in an order that can depend on where a row lies in memory.
``stackable`` decides whether a model can be stacked at all; ``stacked_steps`` lays out the order of batches.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fedpfn.freezing import BitMask, Freeze
from fedpfn.losses import BatchLoss, batch_loss
from fedpfn.params import State, trainable
from fedpfn.training.kernel import NonFiniteError, Trained
from fedpfn.training.local_algorithm import UNCORRECTED, Begun, Correction, correct, reach_of
from fedpfn.training.optimizers import OPTIMIZERS, MakeOptimizer, fuse, keeps_entries_without_gradient
from fedpfn.training.stacked_steps import ClientTraining, Schedule, batches_of, lay_out, lr_factors


@dataclass(frozen=True)
class Outcome:
    """The result of a client's training.

    Attributes
    ----------
    state
        The trainable parameters by name, views of the stack they were trained in.
    trained
        The results that ``train`` would return.
    """

    state: State
    trained: Trained


def train_stacked(
    model: nn.Module,
    clients: Sequence[ClientTraining],
    masks: Sequence[Mapping[str, Tensor] | BitMask | None],
    *,
    optimizer: MakeOptimizer,
    batch_size: int,
    rows: int,
    algorithms: Sequence[Begun] = (),
    clip_norm: float = 0.0,
) -> list[Outcome | NonFiniteError]:
    """Train each of ``clients`` from the model's weights as ``train`` would, ``rows`` at a time.

    A stack's examples lie in memory together, decoded unless they are augmented, and ``rows`` times the model's
    weights, gradients and moments.

    Parameters
    ----------
    model
        The network, which is not changed; ``stackable`` says whether it can be used.
    clients
        The clients' local training.
    masks
        One mask per phase for all clients, as for ``train``; None trains everything.
    optimizer
        Function from parameters to SGD, Adam or AdamW: the stack needs an elementwise optimiser.
    batch_size
        Number of examples in the longest batch of any client.
    rows
        Number of clients in a stack, 1 or more.
    algorithms
        Algorithms begun for each of ``clients``, all of them elementwise (``is_elementwise``) and with the same mu;
        without any, clients only descend.
    clip_norm
        Largest norm of each client's gradient after masking; 0 does not clip.

    Returns
    -------
    list of Outcome or NonFiniteError
        One per client, in their order. A client whose loss or weights are not finite is returned as a
        ``NonFiniteError`` and does not affect the others.

    Raises
    ------
    ValueError
        For phases or batches that do not fit, for any other optimiser, for images that are normalised differently, and
        for corrections that differ in mu.
    """
    if rows < 1 or any(len(client.steps) != len(masks) for client in clients):
        raise ValueError(
            f"a stack needs at least one row, and each client its steps for each of the {len(masks)} phases"
        )
    parameters = trainable(model)
    ready = [mask if mask is None or isinstance(mask, BitMask) else BitMask.of(mask, parameters) for mask in masks]
    # neighbours with similar numbers of steps, so that fewer steps are discarded
    order = sorted(range(len(clients)), key=lambda number: -sum(clients[number].steps))
    outcomes: dict[int, Outcome | NonFiniteError] = {}
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    try:
        for first in range(0, len(order), rows):
            chosen = order[first : first + rows]
            results = _train_stack(
                model, [clients[number] for number in chosen], ready,
                optimizer=optimizer, batch_size=batch_size, rows=rows, clip_norm=clip_norm,
                algorithms=[algorithms[number] for number in chosen] if algorithms else (),
            )  # fmt: skip
            outcomes.update(zip(chosen, results, strict=True))
    finally:
        for module, mode in modes:
            module.training = mode
    return [outcomes[number] for number in range(len(clients))]


def stacked_losses(
    model: nn.Module,
    stack: Mapping[str, Tensor],
    inputs: Tensor,
    labels: Tensor,
    weights: Tensor,
    loss: BatchLoss = batch_loss,
) -> Tensor:
    """Return sum_i v_ri l_ri of each row r, (rows,), for ``inputs``, ``labels`` and ``weights`` (rows, batch, ...).

    ``stack`` holds the trainable parameters, (rows, *shape). If a row's weights are 1 / n for n examples, its loss is
    ``loss`` of these.
    """
    outputs = vmap(lambda own, batch: functional_call(model, own, (batch,)))(dict(stack), inputs)
    losses = loss(outputs.flatten(0, 1), labels.flatten(0, 1), reduction="none")
    return (losses.view(weights.shape) * weights).sum(dim=1)


def _train_stack(
    model: nn.Module,
    clients: Sequence[ClientTraining],
    masks: Sequence[BitMask | None],
    *,
    optimizer: MakeOptimizer,
    batch_size: int,
    rows: int,
    algorithms: Sequence[Begun],
    clip_norm: float,
) -> list[Outcome | NonFiniteError]:
    start = {name: parameter.detach() for name, parameter in trainable(model).items()}
    stack = {name: _repeated(tensor, rows).requires_grad_() for name, tensor in start.items()}
    schedule = lay_out(clients, rows, batch_size, next(iter(start.values())).dtype)
    factors = lr_factors(clients, schedule)
    take = batches_of(clients, schedule)
    correction = _stacked_correction([begun.correction for begun in algorithms], start, rows)
    losses: list[Tensor] = []
    reach: list[list[float]] = [[] for _ in clients]
    for phase, mask in enumerate(masks):
        lasts = [client.steps[phase] for client in clients]
        freeze = Freeze(stack, mask)
        stepper = optimizer(list(stack.values()))
        if type(stepper) not in OPTIMIZERS.values():
            raise ValueError(f"clients can be stacked under SGD, Adam and AdamW, not under {type(stepper).__name__}")
        fuse(stepper)
        restore_each_step = factors is not None or not keeps_entries_without_gradient(stepper)
        done = _rows(stack, lasts, 0)
        for step in range(1, max(lasts) + 1):
            number = len(losses)
            inputs, labels = take(number)
            for parameter in stack.values():
                parameter.grad = None
            loss = stacked_losses(model, stack, inputs, labels, schedule.weights[number], schedule.examples.task.loss)
            loss.sum().backward()  # type: ignore[no-untyped-call]
            if correction:
                correct(stack, start, correction)
            freeze.mask_gradients()
            if clip_norm:
                _clip_rows(stack, clip_norm)
            before = None if factors is None else [parameter.detach().clone() for parameter in stack.values()]
            stepper.step()
            if factors is not None and before is not None:
                _scale_steps(stack, before, factors[number])
            if restore_each_step:
                freeze.restore()
            losses.append(loss.detach())
            if step < max(lasts):
                done |= _rows(stack, lasts, step)
        _write_rows(stack, done)
        freeze.restore()
        settings = stepper.param_groups[0]
        for own, client in zip(reach, clients, strict=True):
            first = sum(client.steps[:phase])
            numbers = range(first, first + client.steps[phase])
            rates = [settings["lr"] * (1.0 if client.lr_factor is None else client.lr_factor(n)) for n in numbers]
            own.append(reach_of(rates, settings))
    return _outcomes(stack, losses, schedule, reach)


def _repeated(tensor: Tensor, rows: int) -> Tensor:
    return tensor.expand(rows, *tensor.shape).clone(memory_format=torch.contiguous_format)


def _stacked_correction(corrections: Sequence[Correction], start: State, rows: int) -> Correction:
    """Return the corrections of a stack's clients as one: each client's own in its row, zeros in others.

    Raises ``ValueError`` if they do not pull towards w_t with the same strength.
    """
    if not corrections:
        return UNCORRECTED
    if len(strengths := {correction.mu for correction in corrections}) > 1:
        raise ValueError("the clients of a stack must be corrected with the same mu")
    names = {name: None for correction in corrections for name in correction.offset}
    nothing = {name: torch.zeros_like(start[name]) for name in names}
    every = [*corrections, *[UNCORRECTED] * (rows - len(corrections))]
    offset = {name: torch.stack([one.offset.get(name, nothing[name]) for one in every]) for name in names}
    return Correction(strengths.pop(), offset)


@torch.no_grad()
def _scale_steps(stack: Mapping[str, Tensor], before: Sequence[Tensor], factors: Tensor) -> None:
    """Multiply each row's step by ``factors[row]``."""
    for parameter, old in zip(stack.values(), before, strict=True):
        parameter.copy_(old.lerp_(parameter, factors.to(old.dtype).view(-1, *([1] * (old.dim() - 1)))))


def _clip_rows(stack: Mapping[str, Tensor], clip_norm: float) -> None:
    """Bound each row's gradient norm: ``torch.nn.utils.clip_grad_norm_`` row by row."""
    gradients = [parameter.grad for parameter in stack.values() if parameter.grad is not None]
    norms = [torch.linalg.vector_norm(gradient.reshape(len(gradient), -1), dim=1) for gradient in gradients]
    factors = (clip_norm / (torch.linalg.vector_norm(torch.stack(norms), dim=0) + 1e-6)).clamp(max=1)
    for gradient in gradients:
        gradient.mul_(factors.view(-1, *([1] * (gradient.dim() - 1))))


@torch.no_grad()
def _rows(stack: Mapping[str, Tensor], lasts: Sequence[int], step: int) -> dict[int, State]:
    """Return a copy of the rows whose last step in this phase is ``step``."""
    return {
        row: {name: parameter[row].clone() for name, parameter in stack.items()}
        for row, last in enumerate(lasts)
        if last == step
    }


@torch.no_grad()
def _write_rows(stack: Mapping[str, Tensor], rows: Mapping[int, State]) -> None:
    for row, state in rows.items():
        for name, tensor in state.items():
            stack[name][row] = tensor


def _outcomes(
    stack: Mapping[str, Tensor], losses: Sequence[Tensor], schedule: Schedule, reach: Sequence[Sequence[float]]
) -> list[Outcome | NonFiniteError]:
    """Return the outcome of each client, with one transfer for all losses and one for the checks of finiteness."""
    values = torch.stack(list(losses)).double().cpu().numpy() if losses else np.zeros((0, 0))
    flags = [torch.isfinite(tensor).reshape(len(tensor), -1).all(dim=1) for tensor in stack.values()]
    finite = torch.stack(flags).cpu().numpy()
    outcomes: list[Outcome | NonFiniteError] = []
    for row, (own, sizes) in enumerate(zip(schedule.own, schedule.sizes, strict=True)):
        steps = len(own)
        taken = values[own, row] if steps else np.zeros(0)
        bad, broken = np.flatnonzero(~np.isfinite(taken)), np.flatnonzero(~finite[:, row])
        if len(bad):
            outcomes.append(NonFiniteError(f"the loss is {taken[bad[0]]} at local step {bad[0] + 1} of {steps}"))
        elif len(broken):
            name = list(stack)[broken[0]]
            outcomes.append(NonFiniteError(f"{name} is not finite after local step {steps} of {steps}"))
        else:
            loss = float((taken * sizes).sum() / sizes.sum()) if steps else math.nan
            state = {name: tensor.detach()[row] for name, tensor in stack.items()}
            outcomes.append(Outcome(state, Trained(loss, steps, tuple(reach[row]))))
    return outcomes
