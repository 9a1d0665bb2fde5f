"""The command line ``fedpfn``: every command is one call, and every known error one line and a non-zero exit status.

Modules that take time to import, above all PyTorch, are imported inside the commands, so that ``--help`` is fast.
"""

import sys
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from experiments import terminal
from experiments.checkout import add_checkout_command
from experiments.command_classes import App
from experiments.interruption import INTERRUPTED, interruptible
from experiments.lab.cli import Filter
from experiments.lab.cli import app as lab
from experiments.report.cli import EPILOG as REPORT_EPILOG
from experiments.report.cli import report
from experiments.reproduce.cli import EPILOG as REPRODUCE_EPILOG
from experiments.reproduce.cli import reproduce
from experiments.runtime.failure import RunFailedError, notes, of_the_system
from experiments.sweep.cli import EPILOG as SWEEP_EPILOG
from experiments.sweep.cli import RayAddress, sweep
from fedpfn import garbage

console, errors = terminal.stdout(), terminal.stderr()
# files of which one is below every folder that `fedpfn report` shows
_TRACES = ("rounds.jsonl", "failure.json", "sweep.yaml", "experiment.yaml")

EPILOG = (
    "Settings are key=value words, e.g. `partition.alpha=0.1`; `fedpfn keys` lists all of them with their defaults. "
    "A run writes a folder with its config, one line per round, barrier curves and the final model."
)

app = App(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Federated learning with neuron alignment: FedAvg, FedPFN and FedPNU on Flower, with barriers recorded.",
    epilog=EPILOG,
)


def _print_version(requested: bool) -> None:
    if requested:
        console.print(f"fedpfn {version('fedpfn')}, flwr {version('flwr')}, torch {version('torch')}")
        raise typer.Exit


app.add_typer(lab, name="lmc", rich_help_panel="Laboratory")


@app.callback()
def options(
    show_version: Annotated[
        bool, typer.Option("--version", help="print the versions and exit", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Take what goes before a command."""


Words = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings, e.g. rounds=30")]
Resumed = Annotated[
    Path | None,
    typer.Option("--resume", metavar="RUN", help="continue a run from its last checkpoint; rounds=N extends it"),
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML file of settings, such as a run's config.yaml")
]


@app.command(epilog=EPILOG)
@garbage.put_off()
def run(
    words: Words = None,
    config: ConfigFile = None,
    resume: Resumed = None,
    supernodes: Annotated[
        int | None, typer.Option(help="number of SuperNodes, each of which gets a cohort of clients")
    ] = None,
    actors: Annotated[
        int | None, typer.Option(help="Ray actors, one process each; default: one per CPU, or per GPU")
    ] = None,
    gpus_per_actor: Annotated[float | None, typer.Option(help="share of a GPU per actor, e.g. 0.25")] = None,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="run without Ray, for debugging and the smallest runs; same results")
    ] = False,
    ray_address: RayAddress = "",
    verbose: Annotated[bool, typer.Option("--verbose", help="show how long each phase of the run took")] = False,
) -> None:
    """Run a federation on Ray; by default FedPFN on handwritten digits, 10 clients, Dirichlet 0.3.

    `--resume RUN` continues a run that was stopped or crashed, with its own config; results are bit-identical.
    `--resume RUN rounds=500` extends a run, even a finished one, to the model that 500 rounds in one go give.
    """
    from experiments.run_words import plan_for, read_run_config
    from experiments.runtime.runtime import started

    here = Path.cwd()
    if resume and config:
        raise typer.BadParameter("a run is resumed with its own config, not with another file", param_hint="--config")
    if resume:
        from experiments.run import read_resumed_config

        requested = read_resumed_config(resume, words or [])
    else:
        requested = read_run_config(words or [], file=config, workdir=here)
    resources = plan_for(
        requested, supernodes=supernodes, actors=actors, gpus_per_actor=gpus_per_actor, ray_address=ray_address
    )
    runtime = nullcontext() if in_process else started(resources, workdir=here, ray_address=ray_address)
    with interruptible(), runtime as workers:
        # imports PyTorch, while the workers do the same
        from experiments.run import prepare, run_config, unused_settings
        from experiments.show import summary_table
        from fedpfn.runs import LOG, read_run

        for line in [] if resume else unused_settings(requested, words or [], file=config):
            errors.print(f"warning: {line}", style="yellow", soft_wrap=True)
        folder = run_config(prepare(requested, workdir=here), console, resources, workers)
        console.print(summary_table(read_run(folder)))
        console.print(f"run folder: {folder}", soft_wrap=True)
    if verbose and workers is not None:
        workers.phases.report(console, folder / LOG)


app.command(epilog=SWEEP_EPILOG)(sweep)
app.command(epilog=REPORT_EPILOG)(report)
add_checkout_command(app, "bench")
add_checkout_command(app, "faults")
app.command(epilog=REPRODUCE_EPILOG)(reproduce)


@app.command()
def watch(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="the folder of a run or of a sweep")],
    once: Annotated[bool, typer.Option("--once", help="print the current progress, and exit")] = False,
) -> None:
    """Watch a run or a sweep from another terminal or machine: rounds, accuracy and time left, until it ends.

    Only the files in the folder are read, and nothing is written.
    """
    from experiments.watch import watch as watch_folder

    watch_folder(folder, console, once=once)


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="a run folder")],
    every: Annotated[int, typer.Option(help="show every n-th round", min=1)] = 1,
) -> None:
    """Show a run: its rounds as a table, and one picture of accuracy and barrier over rounds (RUN/rounds.png)."""
    from experiments.show import show_run
    from experiments.sweep.states import CELL_FILE
    from fedpfn.runs import is_run, read_run

    if (folder / CELL_FILE).is_file():
        raise ValueError(f"{folder} is a cell of the laboratory; try `fedpfn report {folder.resolve().parents[1]}`")
    if not is_run(folder) and any(any(folder.rglob(name)) for name in _TRACES):
        raise ValueError(f"{folder} is not the folder of one run; try `fedpfn report {folder}`")
    show_run(read_run(folder), console, every=every)


@app.command(epilog=EPILOG)
def masks(
    words: Words = None,
    config: ConfigFile = None,
    first: Annotated[int, typer.Option("--first", help="show the first n rounds", min=1)] = 8,
) -> None:
    """Print what a mask schedule freezes, round by round and tensor by tensor, without running anything."""
    from experiments.mask_tables import plans_of, rounds_table, tensors_table
    from experiments.run import prepare
    from experiments.run_words import read_run_config
    from fedpfn.params import trainable
    from fedpfn.runs.arguments import round_plans
    from fedpfn.runs.config import ConfigError
    from strategies.assembly import build_model, load_data

    here = Path.cwd()
    ready = prepare(read_run_config(words or [], file=config, workdir=here), workdir=here)
    if ready.strategy.name == "ssfl":
        raise ConfigError(["strategy.name=ssfl chooses its mask by the clients' data, when the run gets there"])
    parameters = trainable(build_model(ready, load_data(ready).dataset))
    plans = plans_of(round_plans(ready), min(first, ready.rounds))
    console.print(rounds_table(ready, plans, parameters))
    console.print()
    console.print(tensors_table(plans, parameters))


@app.command("check-model", epilog=EPILOG)
def check_model(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="alias, torchvision name or package.module:factory")],
    words: Words = None,
) -> None:
    """Check that a model can be federated: forward, backward, state-dict round trip, buffers, what a mask touches.

    The inputs have the shape of the examples of `data.name`; a mask's patterns are `mask.include` and `mask.exclude`.
    """
    from experiments.model_check import check

    if not check(name, words or [], console, workdir=Path.cwd()):
        raise typer.Exit(1)


@app.command()
def keys(matching: Filter = "") -> None:
    """List the keys of the config, each with its default, its allowed values and what it is for."""
    from experiments.keys_table import keys_table
    from fedpfn.runs.config import RunConfig

    console.print(keys_table(RunConfig, matching))


def main() -> None:
    """Run the command line; known errors end in one message and exit status 1, Ctrl-C in 130."""
    terminal.open_missing()
    with interruptible(to_the_end=True):
        _run_app()


def _run_app() -> None:
    try:
        app()
    except SystemExit as ended:
        # typer turns Ctrl-C into this exit status
        if ended.code == INTERRUPTED:
            _say_last("stopped", ended)
        raise
    except KeyboardInterrupt as interruption:
        # Ctrl-C before typer runs
        _say_last("stopped", interruption)
        sys.exit(INTERRUPTED)
    except Exception as error:
        message = explanation(error)
        if message is None:
            raise
        _say_last(message, error)
        sys.exit(1)
    finally:
        garbage.settle()


def _say_last(message: str, error: BaseException) -> None:
    # imports nothing: an interrupted import breaks later ones
    errors.print(message, style="red", soft_wrap=True)
    for line in notes(error):
        errors.print(line, soft_wrap=True)


def explanation(error: Exception) -> str | None:
    """Return the message for a known error; None for a bug in this package, which needs its traceback."""
    if isinstance(error, RunFailedError | ValueError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return of_the_system(error)
    # imported here, since it imports PyTorch, which takes a moment unless it has been imported already
    from strategies.cohort_failures import RoundFailedError

    return f"the run failed: {error}" if isinstance(error, RoundFailedError) else None
