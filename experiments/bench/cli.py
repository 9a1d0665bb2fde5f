"""The command line of ``fedpfn bench``: what to run, at which size, and where the results go."""

from pathlib import Path
from typing import Annotated

import typer

from experiments.terminal import stdout

EPILOG = (
    "Contestants run in turns, each in processes of its own: a Flower app as its quickstart has it in Flower's "
    "simulation, the same with caches, fedpfn, and the peers that --peers names. Run it on a machine that does nothing "
    "else."
)

Parts = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[PART]...", help="a b c cnn e1 e2 (training), d (barriers), server, clients, models, scale, long; all"
    ),
]


def bench(
    parts: Parts = None,
    out: Annotated[Path, typer.Option(help="folder for bench.json, bench.md and pictures")] = Path("bench"),
    full: Annotated[bool, typer.Option("--full", help="sizes for a GPU instead of a few cores")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="a smoke test of two minutes, whose times mean nothing")
    ] = False,
    repeats: Annotated[int, typer.Option(help="number of turns of each contestant", min=1)] = 3,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    actors: Annotated[int | None, typer.Option(help="Ray actors per contestant; default: one per core", min=1)] = None,
    peers: Annotated[str, typer.Option(help="other frameworks, comma-separated: pfl,pfl-1,fluke,blazefl, or all")] = "",
    peers_dir: Annotated[
        Path | None, typer.Option(help="folder for their environments, 5 GB each; default: in the user's cache")
    ] = None,
) -> None:
    """Time federated rounds and barriers on this machine: Flower's quickstart, the same with caches, fedpfn, the limit.

    Without PARTs everything is timed, which takes most of an hour on two cores. The tables give seconds per
    round, ratios taken turn by turn, and how far local training is from a bare PyTorch loop. Peers named by --peers
    are installed with pip, each in a virtual environment of its own, and join the training workloads.
    """
    import torch

    from experiments.bench.bench import bench as run_bench
    from experiments.bench.bench import letters
    from experiments.bench.figures import write_figures
    from experiments.bench.peers.environments import default_folder
    from experiments.bench.peers.frameworks import PEERS
    from experiments.bench.tables import markdown, tables
    from fedpfn.devices import available_cpus
    from fedpfn.runs.config import ConfigError

    console = stdout()
    if quick and full:
        raise ConfigError(["--quick and --full are mutually exclusive"])
    size = "quick" if quick else "full" if full else "reduced"
    known = letters(size)
    if unknown := [part for part in parts or [] if part not in known]:
        raise ConfigError(
            [f"there is no part {part!r} at size {size}; there are {', '.join(known)}" for part in unknown]
        )
    names = list(PEERS) if peers == "all" else [name for name in peers.split(",") if name]
    if unknown := [name for name in names if name not in PEERS]:
        raise ConfigError([f"there is no peer {name!r}; there are {', '.join(PEERS)}" for name in unknown])
    gpus = torch.cuda.device_count()
    if device == "cuda" and not gpus:
        raise ConfigError(["--device cuda, but no GPU is visible"])
    device = ("cuda" if gpus else "cpu") if device == "auto" else device
    out.mkdir(parents=True, exist_ok=True)
    result = run_bench(
        parts or known,
        console,
        size=size,
        repeats=1 if quick else repeats,
        device=device,
        actors=min(actors or available_cpus(), available_cpus()),
        gpus=gpus if device == "cuda" else 0,
        file=out / "bench.json",
        peers=[PEERS[name] for name in names],
        environments=(peers_dir or default_folder()).resolve(),
    )
    for table in tables(result):
        console.print(table.rich())
    (out / "bench.md").write_text(markdown(result), encoding="utf-8")
    pictures = write_figures(result, out)
    console.print(f"results: {', '.join(str(path) for path in (out / 'bench.json', out / 'bench.md', *pictures))}",
                  soft_wrap=True)  # fmt: skip
