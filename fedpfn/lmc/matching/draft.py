"""A permutation specification in the making: what each kind of layer adds to it.

Shared by the specs of sequential and of residual networks; which units flow where is theirs to say. A layer is written
down only if a permutation of its units passes through it exactly; any other raises ``ValueError`` in one line that
names it.
"""

from dataclasses import dataclass, field

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedpfn.lmc.matching.permutations import Axis, PermutationSpec
from fedpfn.params import float_buffers, trainable

Weighted = nn.Linear | nn.Conv2d


def refusal(name: str, reason: str) -> ValueError:
    """Return the error for a module that no specification can represent."""
    return ValueError(f"{name or 'the model'} cannot follow a permutation of units: {reason}")


@dataclass
class Draft:
    """The four parts of a ``PermutationSpec``, filled in layer by layer."""

    axes: dict[str, tuple[Axis | None, ...]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    features: dict[str, str] = field(default_factory=dict)
    statistics: set[str] = field(default_factory=set)

    def weighted(self, name: str, layer: Weighted, *, inputs: Axis | None, outputs: Axis | None) -> None:
        """Add a linear layer or a convolution, weight (outputs, inputs, ...) and bias (outputs,)."""
        if isinstance(layer, nn.Conv2d) and layer.groups != 1:
            raise refusal(name, f"a convolution in {layer.groups} groups ties each channel to its group")
        self.axes[f"{name}.weight"] = (outputs, inputs, *([None] * (layer.weight.dim() - 2)))
        if layer.bias is not None:
            self.axes[f"{name}.bias"] = (outputs,)

    def norm(self, name: str, layer: nn.Module, axis: Axis | None) -> None:
        """Add a BatchNorm or GroupNorm layer on units ``axis``, or what stands for none of them: an identity.

        One mean and variance a unit (BatchNorm), or one over all units (one group), do not depend on their order.
        """
        if isinstance(layer, nn.GroupNorm) and layer.num_groups != 1 and axis is not None:
            raise refusal(name, f"GroupNorm with {layer.num_groups} groups ties each channel to its group")
        if not isinstance(layer, _BatchNorm | nn.GroupNorm | nn.Identity):
            raise refusal(name, f"{type(layer).__name__} is no norm layer known here")
        for part in ("weight", "bias", "running_mean", "running_var"):
            if getattr(layer, part, None) is not None:
                self.axes[f"{name}.{part}"] = (axis,)
                if part.startswith("running"):
                    self.statistics.add(f"{name}.{part}")

    def finish(self, model: nn.Module) -> PermutationSpec:
        """Return the specification. Raises ``ValueError`` unless it has every tensor of the model's state and no other.

        A parameter that does not train is in no state, and a permutation would leave it behind.
        """
        own = trainable(model) | float_buffers(model)
        if left := sorted(self.axes.keys() - own.keys()):
            raise refusal(left[0], "it is in no state, since it does not train or is tied to another tensor")
        if strange := sorted(own.keys() - self.axes.keys()):
            raise refusal(strange[0], "what it does in the forward pass is not known here")
        return PermutationSpec(self.axes, self.sizes, self.features, frozenset(self.statistics))
