"""``fedpfn lmc``: the laboratory on the command line."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.command_classes import App
from experiments.terminal import stdout

if TYPE_CHECKING:
    from experiments.lab.checkpoint_set import CheckpointSet

console = stdout()
# of 100 permutations planted in a ResNet with noise, one search finds 17; 1, 4 and 10 further ones find 91, 94 and 95
RESTARTS = 10

EPILOG = (
    "Settings are key=value words, e.g. `train.epochs=3`; `fedpfn lmc keys` lists them. Path convention: "
    "w(alpha) = alpha * first + (1 - alpha) * second."
)

app = App(
    help="The laboratory of linear mode connectivity: checkpoints compared, matched, dissected and fused. "
    "Its experiments are run by `fedpfn sweep`.",
)

Checkpoints = Annotated[
    list[str],
    typer.Argument(metavar="A B ... [KEY=VALUE]...", help="checkpoints (.safetensors, .pt, .pth, .bin), and settings"),
]
ModelName = Annotated[
    str,
    typer.Option("--model", help="model, if the checkpoints' folder does not name it: a name, or package.module:Class"),
]
DataName = Annotated[
    str,
    typer.Option("--data", help="data set, if the checkpoints' folder does not name it: a name, or module:loader"),
]
Trust = Annotated[
    bool, typer.Option("--trust", help="run the code that the checkpoints' folder names as its model or data set")
]
Filter = Annotated[str, typer.Argument(metavar="[TEXT]", help="show only keys whose name or description contains it")]
DataRoot = Annotated[str, typer.Option("--root", help="folder that holds the data")]


@app.callback()
def options() -> None:
    """Find the user's own modules in the folder where the command is typed."""
    from fedpfn import imports

    imports.look_in(Path.cwd())


def _checkpoint_set(
    words: list[str], model: str, data: str, root: str, trust: bool, *, minimum: int, maximum: int | None = None
) -> "CheckpointSet":
    # imports PyTorch
    from experiments.lab.checkpoint_set import CheckpointSet

    named = {"model.name": model, "data.name": data, "data.root": root}
    return CheckpointSet(words, named, minimum=minimum, maximum=maximum, trust=trust)


@app.command(epilog=EPILOG)
def evaluate(
    checkpoints: Checkpoints,
    model: ModelName = "",
    data: DataName = "",
    root: DataRoot = "",
    trust: Trust = False,
    out: Annotated[Path | None, typer.Option(help="write the values into this JSON file")] = None,
) -> None:
    """Measure loss and score of each checkpoint on the test examples of a data set."""
    from experiments.lab.evaluate import show_evaluations

    checkpoint_set = _checkpoint_set(checkpoints, model, data, root, trust, minimum=1)
    show_evaluations(checkpoint_set, console, out=out)


@app.command(epilog=EPILOG)
def barrier(
    checkpoints: Checkpoints,
    model: ModelName = "",
    data: DataName = "",
    root: DataRoot = "",
    trust: Trust = False,
    out: Annotated[Path | None, typer.Option(help="draw the curves into this file (.png, .svg)")] = None,
) -> None:
    """Measure loss and accuracy barriers between any checkpoints of one model, a federated run's clients included."""
    from experiments.lab.compare import require_picture, show_barriers

    require_picture(out)
    checkpoint_set = _checkpoint_set(checkpoints, model, data, root, trust, minimum=2)
    show_barriers(checkpoint_set, console, picture=out)


@app.command(epilog=EPILOG)
def match(
    checkpoints: Checkpoints,
    out: Annotated[Path, typer.Option(help="file for the second checkpoint, permuted to match the first")],
    method: Annotated[str, typer.Option(help="weight, activation, ste or annealing")] = "weight",
    restarts: Annotated[
        int, typer.Option(help="additional searches of weight matching; the best one counts", min=0)
    ] = RESTARTS,
    steps: Annotated[int | None, typer.Option(help="steps of ste, moves of annealing", min=1)] = None,
    model: ModelName = "",
    data: DataName = "",
    root: DataRoot = "",
    trust: Trust = False,
) -> None:
    """Permute the second checkpoint's units to match the first's, and report the effect on the path between them."""
    from experiments.lab.compare import match_pair, require_new_checkpoint

    require_new_checkpoint(out)
    checkpoint_set = _checkpoint_set(checkpoints, model, data, root, trust, minimum=2, maximum=2)
    options = {} if steps is None else {"steps": steps}
    if method == "weight":
        options["restarts"] = restarts
    match_pair(checkpoint_set, console, method=method, out=out, **options)


@app.command(epilog=EPILOG)
def layers(
    checkpoints: Checkpoints,
    out: Annotated[Path, typer.Option(help="picture; the whole table is written next to it as CSV")] = Path(
        "layers.png"
    ),
    model: ModelName = "",
    data: DataName = "",
    root: DataRoot = "",
    trust: Trust = False,
) -> None:
    """Compare two checkpoints layer by layer: LLFC, LEWC, weak additivity, commutativity, stitching."""
    from experiments.lab.compare import require_picture, show_layers

    require_picture(out)
    checkpoint_set = _checkpoint_set(checkpoints, model, data, root, trust, minimum=2, maximum=2)
    show_layers(checkpoint_set, console, out=out)


@app.command(epilog=EPILOG)
def curve(
    checkpoints: Checkpoints,
    out: Annotated[Path, typer.Option(help="picture; the values are written next to it as CSV")] = Path("curve.png"),
    bend: Annotated[
        Path | None, typer.Option(help="write the trained bend into this checkpoint (.safetensors)")
    ] = None,
    model: ModelName = "",
    data: DataName = "",
    root: DataRoot = "",
    trust: Trust = False,
) -> None:
    """Train a Bezier curve of low loss between two checkpoints, and measure it next to the straight line.

    `train.epochs`, `train.lr` and the other `train.*` settings apply to the training of the curve's bend.
    """
    from experiments.lab.compare import require_new_checkpoint, require_picture
    from experiments.lab.curve import show_curve

    require_picture(out)
    if bend is not None:
        require_new_checkpoint(bend)
    checkpoint_set = _checkpoint_set(checkpoints, model, data, root, trust, minimum=2, maximum=2)
    show_curve(checkpoint_set, console, out=out, bend=bend)


@app.command(epilog=EPILOG)
def fuse(
    method: Annotated[str, typer.Argument(help="mean, greedy, task-arithmetic, ties, fisher or regmean")],
    checkpoints: Checkpoints,
    out: Annotated[Path, typer.Option(help="file for the fused checkpoint (.safetensors)")],
    base: Annotated[
        Path | None, typer.Option(help="common start of the models, for task-arithmetic and ties", exists=True)
    ] = None,
    scale: Annotated[float | None, typer.Option(help="factor of the task vectors: task-arithmetic, ties")] = None,
    density: Annotated[float | None, typer.Option(help="share of each task vector that ties keeps")] = None,
    off_diagonal: Annotated[
        float | None, typer.Option(help="factor of regmean's Gram matrices off the diagonal", min=0, max=1)
    ] = None,
    examples: Annotated[
        int | None,
        typer.Option(help="training examples for fisher (200), greedy and regmean (1000); 0 = all", min=0),
    ] = None,
    model: ModelName = "",
    data: DataName = "",
    root: DataRoot = "",
    trust: Trust = False,
) -> None:
    """Fuse checkpoints into one, write it, and report its loss and score next to theirs."""
    from experiments.lab.fuse import fuse_checkpoints, require_method

    given = {"scale": scale, "density": density, "off_diagonal": off_diagonal}
    options = {name: value for name, value in given.items() if value is not None}
    require_method(method, options, base=base, out=out)
    checkpoint_set = _checkpoint_set(checkpoints, model, data, root, trust, minimum=2)
    fuse_checkpoints(checkpoint_set, console, method=method, base=base, out=out, examples=examples, **options)


@app.command()
def keys(matching: Filter = "") -> None:
    """List the keys of a laboratory cell, each with its default, its allowed values and what it is for."""
    from experiments.keys_table import keys_table
    from experiments.lab.config import LabConfig

    console.print(keys_table(LabConfig, matching))
