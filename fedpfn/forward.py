"""Watch forward passes: evaluation mode within a block, and functions called before and after modules run."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

Report = Callable[[str, nn.Module, Any], None]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put ``model`` in evaluation mode for a block, then restore the mode of each of its modules.

    Features would otherwise depend on dropout and on the batch (BatchNorm).
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def watching(modules: Iterable[tuple[str, nn.Module]], start: Report, stop: Report | None = None) -> Iterator[None]:
    """Report each call of some modules within a block, by hooks.

    Parameters
    ----------
    modules
        Pairs of a name and a module, such as ``model.named_modules()``.
    start
        ``start(name, module, input)`` is called before a module runs, with the first tensor among its arguments; None
        if there is none.
    stop
        ``stop(name, module, output)`` is called after it.

    Yields
    ------
    None
        The hooks are removed at the end of the block.
    """

    def before(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        tensors = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        start(name, module, next(tensors, None))

    def after(name: str, module: nn.Module, args: Any, output: Any) -> None:
        if stop is not None:
            stop(name, module, output)

    with ExitStack() as hooks:
        for name, module in modules:
            hooks.callback(module.register_forward_pre_hook(partial(before, name), with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(partial(after, name)).remove)
        yield
