"""Matching by a straight-through estimator: find the permutation that minimises the loss between two models.

A latent model B~ starts at A. In every step B is matched to it by weights, pi = argmax ``<B~, pi(B)>``; the loss of the
midpoint (A + pi(B)) / 2 is taken on a batch; and the gradient passes through the matching as if it were the identity,
B~ <- B~ - eta grad L / 2 (Git Re-Basin, Ainsworth et al. 2023, section 3.3). Its first permutation is that of weight
matching.
"""

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from fedpfn.examples import Examples
from fedpfn.lmc.batch_norm import smallest_batch
from fedpfn.lmc.matching.midpoint import midpoint_evaluator
from fedpfn.lmc.matching.permutations import PermutationSpec
from fedpfn.lmc.matching.weights import Matching, weight_matching
from fedpfn.losses import batch_loss
from fedpfn.params import State, first_non_finite, lerp
from fedpfn.progress import Progress, Steps
from fedpfn.seeding import derive, numpy_generator
from fedpfn.training import Loss, NonFiniteError, batch_order


def straight_through(
    spec: PermutationSpec,
    model: nn.Module,
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    examples: Examples,
    *,
    seed: int = 0,
    steps: int = 100,
    lr: float = 1.0,
    batch_size: int = 128,
    progress: Progress | None = None,
) -> Matching:
    """Return the matching of ``second`` to ``first`` with the lowest midpoint loss found in ``steps`` gradient steps.

    Each matching starts from the previous one. BatchNorm normalises by batch statistics in a step, and by re-estimated
    statistics when losses are compared.

    Parameters
    ----------
    spec
        The hidden units of the architecture.
    model
        Determines the architecture; it is not changed.
    first, second
        The state that stays and the state that is renumbered, of equal shapes and dtypes, on the same device.
    examples
        Labelled examples to take gradients on, and to compare midpoints on.
    seed
        Seed of the batches, and of the order of permutations in a sweep of weight matching.
    steps
        Number of gradient steps, 0 or more; with 0 the result is that of weight matching.
    lr
        Learning rate eta of the latent model, above 0. No unit moves before the latent model has moved by about a
        weight's size: on MLPs learning rates of 1 to 10 achieved this, 0.1 hardly did.
    batch_size
        Number of examples per gradient step, 1 or more.
    progress
        Called with the number of steps done and the total.

    Returns
    -------
    Matching
        ``objective`` is the loss of the midpoint on all ``examples`` before the first and after each step, which counts
        as a sweep; the result has the lowest loss.

    Raises
    ------
    ValueError
        For states that cannot be matched, options out of range, and too few examples for a batch.
    NonFiniteError
        For a gradient that is not finite; the message names the step.
    """
    if steps < 0 or batch_size < 1 or not lr > 0:
        raise ValueError(f"expected steps >= 0, batch_size >= 1 and lr > 0; got {steps}, {batch_size}, {lr}")
    tried = best = weight_matching(spec, first, second, seed=seed)
    evaluate_midpoint = midpoint_evaluator(model, first, examples)
    losses = [evaluate_midpoint(tried.state).loss]
    latent = dict(first)
    scratch = _normalising_by_batch(model)
    min_batch = smallest_batch(model)
    batches = batch_order(
        len(examples), batch_size, numpy_generator(seed, "straight-through", "batches"), min_batch=min_batch
    )
    done = Steps(progress, steps)
    for step in range(1, steps + 1):
        inputs, labels = examples.batch(torch.from_numpy(next(batches)).to(examples.device))
        middle = lerp(first, tried.state, 0.5)
        gradient = _gradient(scratch, middle, spec.statistics, inputs, labels, examples.task.loss)
        if (name := first_non_finite(gradient)) is not None:
            raise NonFiniteError(f"the gradient of {name} at the midpoint is not finite in step {step} of {steps}")
        for name, slope in gradient.items():
            latent[name] = latent[name] - lr / 2 * slope
        sweeps_seed = derive(seed, "straight-through", step)
        tried = weight_matching(spec, latent, second, seed=sweeps_seed, start=tried.permutations)
        # the midpoint depends only on the permutations: if they do not change, neither does its loss
        losses.append(evaluate_midpoint(tried.state).loss if tried.sweeps else losses[-1])
        if losses[-1] < min(losses[:-1]):
            best = tried
        done()
    return Matching(best.permutations, best.state, steps, tuple(losses))


def _normalising_by_batch(model: nn.Module) -> nn.Module:
    scratch = deepcopy(model).eval()
    for module in scratch.modules():
        if isinstance(module, _BatchNorm):
            module.train()
    return scratch


def _gradient(
    model: nn.Module,
    state: State,
    fixed: frozenset[str],
    inputs: Tensor,
    labels: Tensor,
    loss_of: Loss = batch_loss,
) -> State:
    # BatchNorm writes its running statistics into the tensors it is called with
    weights = {name: tensor.clone().requires_grad_() for name, tensor in state.items() if name not in fixed}
    statistics = {name: state[name].clone() for name in fixed}
    loss = loss_of(functional_call(model, weights | statistics, (inputs,)), labels)
    return dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
