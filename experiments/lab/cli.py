"""``fedpfn lmc``: the laboratory on the command line."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from experiments.command_classes import App
from experiments.terminal import stdout

console = stdout()
# of 100 permutations planted in a ResNet under noise, one search finds 17, with 1, 4 and 10 more 91, 94 and 95
RESTARTS = 10

EPILOG = (
    "Settings are key=value words, e.g. `train.epochs=3`; `fedpfn lmc keys` lists them. Path convention: "
    "w(alpha) = alpha * first + (1 - alpha) * second."
)

app = App(
    help="The laboratory of linear mode connectivity: experiments as files, checkpoints compared, matched, dissected.",
)

Words = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings, and seeds=n")]
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
DataRoot = Annotated[str, typer.Option("--root", help="folder that holds the data")]


@app.callback()
def options() -> None:
    """Find the user's own modules in the folder where the command is typed."""
    from fedpfn import imports

    imports.look_in(Path.cwd())


@app.command(epilog=EPILOG)
def run(
    experiment: Annotated[Path, typer.Argument(metavar="FILE", help="an experiment, or a name from `fedpfn lmc list`")],
    words: Words = None,
    quick: Annotated[bool, typer.Option("--quick", help="the short form, for two cores and a few minutes")] = False,
    case: Annotated[list[str] | None, typer.Option(help="run only this case; may be repeated")] = None,
    out: Annotated[
        Path | None, typer.Option(help="output folder; one that holds part of the same experiment is continued")
    ] = None,
    jobs: Annotated[int | None, typer.Option(help="cells to run in parallel; default: one per CPU core", min=1)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what would run, and stop")] = False,
) -> None:
    """Train, measure, and print published figures next to measured ones; writes a folder with records and figures."""
    from experiments.lab.experiment import read_experiment
    from experiments.lab.run import check, run_experiment

    parsed, cells = read_experiment(experiment, words or [], quick=quick, cases=case or [])
    if dry_run:
        check(parsed, cells)
        table = Table(box=None, header_style="bold", pad_edge=False)
        for name in ("cell", "case", "axes", "seed"):
            table.add_column(name)
        for cell in cells:
            axes = " ".join(f"{axis}={value}" for axis, value in cell.axes.items())
            table.add_row(cell.key, cell.case, axes, str(cell.seed))
        console.print(table, highlight=False)
        return
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    folder = (out or Path("runs") / "lmc" / f"{stamp}_{parsed.name}").resolve()
    run_experiment(parsed, cells, folder, console, jobs=jobs)
    _show(folder)


@app.command()
def report(folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="the folder of an experiment")]) -> None:
    """Print an experiment's tables again and redraw its figures, from its folder alone."""
    _show(folder)


@app.command("list")
def list_experiments() -> None:
    """List the experiments that come with fedpfn: one per table and figure of the papers."""
    from experiments.lab.experiment import packaged_experiments

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("name", no_wrap=True)
    for name in ("what", "source"):
        table.add_column(name, overflow="fold")
    for name, tree in packaged_experiments():
        table.add_row(name, str(tree.get("title", "")), str(tree.get("source", "")))
    console.print(table, highlight=False)


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
    from experiments.lab.checkpoint_set import CheckpointSet
    from experiments.lab.evaluate import show_evaluations

    checkpoint_set = CheckpointSet(
        checkpoints, minimum=1, maximum=None, model_name=model, data_name=data, data_root=root, trust=trust
    )
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
    from experiments.lab.checkpoint_set import CheckpointSet
    from experiments.lab.compare import require_picture, show_barriers

    require_picture(out)
    checkpoint_set = CheckpointSet(
        checkpoints, minimum=2, maximum=None, model_name=model, data_name=data, data_root=root, trust=trust
    )
    show_barriers(checkpoint_set, console, picture=out)


@app.command(epilog=EPILOG)
def match(
    checkpoints: Checkpoints,
    out: Annotated[Path, typer.Option(help="where the second checkpoint goes, permuted to match the first")],
    method: Annotated[str, typer.Option(help="weight, activation, ste or annealing")] = "weight",
    restarts: Annotated[
        int, typer.Option(help="further searches of weight matching; the best one counts", min=0)
    ] = RESTARTS,
    steps: Annotated[int | None, typer.Option(help="steps of ste, moves of annealing", min=1)] = None,
    model: ModelName = "",
    data: DataName = "",
    root: DataRoot = "",
    trust: Trust = False,
) -> None:
    """Permute the second checkpoint's units to match the first's, and report what that does to the path."""
    from experiments.lab.checkpoint_set import CheckpointSet
    from experiments.lab.compare import match_pair

    checkpoint_set = CheckpointSet(
        checkpoints, minimum=2, maximum=2, model_name=model, data_name=data, data_root=root, trust=trust
    )
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
    from experiments.lab.checkpoint_set import CheckpointSet
    from experiments.lab.compare import require_picture, show_layers

    require_picture(out)
    checkpoint_set = CheckpointSet(
        checkpoints, minimum=2, maximum=2, model_name=model, data_name=data, data_root=root, trust=trust
    )
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

    `train.epochs`, `train.lr` and the other `train.*` settings are those of the curve's bend.
    """
    from experiments.lab.checkpoint_set import CheckpointSet
    from experiments.lab.compare import require_picture
    from experiments.lab.curve import require_bend, show_curve

    require_picture(out)
    require_bend(bend)
    checkpoint_set = CheckpointSet(
        checkpoints, minimum=2, maximum=2, model_name=model, data_name=data, data_root=root, trust=trust
    )
    show_curve(checkpoint_set, console, out=out, bend=bend)


@app.command(epilog=EPILOG)
def fuse(
    method: Annotated[str, typer.Argument(help="mean, greedy, task-arithmetic, ties, fisher or regmean")],
    checkpoints: Checkpoints,
    out: Annotated[Path, typer.Option(help="where the fused checkpoint goes (.safetensors)")],
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
    """Fuse checkpoints into one, write it, and report loss and score next to those it was made of."""
    from experiments.lab.checkpoint_set import CheckpointSet
    from experiments.lab.fuse import fuse_checkpoints, require_method

    given = {"scale": scale, "density": density, "off_diagonal": off_diagonal}
    options = {name: value for name, value in given.items() if value is not None}
    require_method(method, options, base=base, out=out)
    checkpoint_set = CheckpointSet(
        checkpoints, minimum=2, maximum=None, model_name=model, data_name=data, data_root=root, trust=trust
    )
    fuse_checkpoints(checkpoint_set, console, method=method, base=base, out=out, examples=examples, **options)


@app.command()
def keys(
    matching: Annotated[
        str, typer.Argument(metavar="[TEXT]", help="show only keys whose name or description contains it")
    ] = "",
) -> None:
    """List the keys of a laboratory cell, each with its default, its allowed values and what it is for."""
    from experiments.keys_table import keys_table
    from experiments.lab.config import LabConfig

    console.print(keys_table(LabConfig, matching), highlight=False)


def _show(folder: Path) -> None:
    from experiments.lab.figures import draw_figures
    from experiments.lab.folder import read_lab
    from experiments.lab.report import markdown_report, results_table, settings_lines, verdicts
    from fedpfn.runs import write_whole

    result = read_lab(folder)
    results = results_table(result)
    table = Table(
        title=Text(result.experiment.title), title_justify="left", box=None, header_style="bold", pad_edge=False
    )
    for name in results.header:
        table.add_column(Text(name), overflow="fold")
    for row in results.rows:
        table.add_row(*map(Text, row))
    console.print(table, highlight=False)
    for line in (*settings_lines(result), *verdicts(result)):
        console.print(f"- {line}", highlight=False, soft_wrap=True, markup=False)
    # first without pictures: tables are not lost where one cannot be drawn
    write_whole(folder / "report.md", markdown_report(result).encode())
    write_whole(folder / "report.md", markdown_report(result, draw_figures(result)).encode())
    if not result.complete:
        console.print(f"not complete: {len(result.records)} cells so far", style="red", highlight=False)
    console.print(f"folder: {folder}", soft_wrap=True, highlight=False, markup=False)
