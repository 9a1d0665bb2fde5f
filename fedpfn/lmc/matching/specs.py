"""``spec_for``: the permutation specification of a model, where there is one.

Sequential networks (MLP, CNN, VGG and any of one's own) are derived layer by layer in ``sequential``. The residual
networks are written down here: blocks that add their branch to a stream must leave its units in their order, so that
one permutation goes with a whole stream, and one more with the inside of each block (Git Re-Basin). A projection
shortcut ends a stream and starts the next.
"""

from torch import nn

from fedpfn.lmc.matching.draft import Draft, refusal
from fedpfn.lmc.matching.permutations import Axis, PermutationSpec
from fedpfn.lmc.matching.sequential import sequential_spec
from fedpfn.models.resnet import BasicBlock, ResNet


def spec_for(model: nn.Module) -> PermutationSpec:
    """Return the specification of ``model``. Raises ``ValueError``, naming the module, where it has none.

    >>> from fedpfn.models import build
    >>> spec_for(build("mlp", (4,), 2, seed=0, hidden=1, width=3)).sizes
    {'linear1': 3}
    """
    # a subclass with a forward of its own may wire the same layers otherwise
    if isinstance(model, ResNet) and type(model).forward is ResNet.forward:
        return resnet_spec(model)
    if isinstance(model, nn.Sequential) and type(model).forward is nn.Sequential.forward:
        return sequential_spec(model)
    raise refusal("", f"{type(model).__name__} is neither an nn.Sequential nor one of the built-in ResNets")


def resnet_spec(model: ResNet) -> PermutationSpec:
    """Return the specification of a ResNet with norm ``none``, ``layer`` or ``batch`` (or one group).

    A stream is named after the stage that ends it, whose output are its features; the inside of a block after the
    convolution that makes it.
    """
    draft = Draft()
    stream = Axis("stages.0")
    draft.weighted("conv", model.conv, inputs=None, outputs=stream)
    draft.norm("norm", model.norm, stream)
    draft.sizes[stream.permutation] = model.conv.out_channels
    for stage_name, stage in model.stages.named_children():
        assert isinstance(stage, nn.Sequential)
        for block_name, block in stage.named_children():
            assert isinstance(block, BasicBlock)
            stream = _add_block(draft, f"stages.{stage_name}", block_name, block, stream)
    draft.features |= {name: name for name in draft.sizes if name not in draft.features}
    draft.weighted("head", model.head, inputs=stream, outputs=None)
    return draft.finish(model)


def _add_block(draft: Draft, stage: str, block_name: str, block: BasicBlock, stream: Axis) -> Axis:
    name = f"{stage}.{block_name}"
    inner, after = Axis(f"{name}.conv1"), stream
    if isinstance(block.shortcut, nn.Sequential):
        projection, norm = block.shortcut
        assert isinstance(projection, nn.Conv2d)
        after = Axis(stage)
        draft.sizes[stage] = projection.out_channels
        draft.weighted(f"{name}.shortcut.0", projection, inputs=stream, outputs=after)
        draft.norm(f"{name}.shortcut.1", norm, after)
    draft.sizes[inner.permutation], draft.features[inner.permutation] = block.conv1.out_channels, f"{name}.relu1"
    draft.weighted(f"{name}.conv1", block.conv1, inputs=stream, outputs=inner)
    draft.norm(f"{name}.norm1", block.norm1, inner)
    draft.weighted(f"{name}.conv2", block.conv2, inputs=inner, outputs=after)
    draft.norm(f"{name}.norm2", block.norm2, after)
    return after
