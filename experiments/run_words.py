"""Makes a run config and plans its workers from the command line, before anything slow is imported."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.resources import Resources, plan_resources
from experiments.runtime.machines import machines_of
from fedpfn import imports
from fedpfn.devices import gpu_count
from fedpfn.runs.config import KEYS, ConfigError, RunConfig, read_overrides
from fedpfn.runs.keys import from_folder


def read_run_config(words: Iterable[str], *, file: Path | None, workdir: Path) -> RunConfig:
    """Return the config of ``file`` (if given) and ``words``, with paths made absolute from ``workdir``.

    Raises ``ConfigError`` if keys or values have faults, together with all other faults that can be found despite them;
    ``experiments.run.prepare`` checks configs whose keys and values are valid.
    """
    layer: dict[str, Any] = {}
    if file:
        # the readers of run folders import PyTorch
        from fedpfn.runs import read_config

        try:
            layer = read_config(file)
        except (OSError, ValueError) as error:
            raise ConfigError([str(error)]) from error
        # the config.yaml of a run names its folder, which a new run must not write to
        layer.get("output", {}).pop("dir", None)
    given, faults = read_overrides(words)
    reading = RunConfig.read(layer, given, faults=faults.values(), unknown=faults)
    read = reading.config.flat()
    settings = read | {name: from_folder(workdir, name, read[name]) for name in KEYS if name in read}
    if reading.faults:
        # the checks of complete configs import PyTorch
        from strategies.preflight import all_faults

        imports.look_in(workdir)
        raise ConfigError(all_faults(replace(reading, config=RunConfig.read(settings).config)))
    return RunConfig.parse(settings)


def plan_for(
    config: RunConfig,
    *,
    supernodes: int | None = None,
    actors: int | None = None,
    gpus_per_actor: float | None = None,
    ray_address: str = "",
) -> Resources:
    """Return what a run of ``config`` gets of this machine, or of the Ray cluster at ``ray_address``.

    Raises ``ConfigError`` if they lack something, and ``ValueError`` if there is no such cluster.
    """
    # auto looks for a GPU on this machine, since the server needs one as well
    on_gpu = config.device == "cuda" or (config.device == "auto" and gpu_count() > 0)
    machines = machines_of(ray_address, gpus=on_gpu)
    try:
        return plan_resources(
            device="cuda" if on_gpu else "cpu",
            clients_per_round=config.federation.per_round,
            supernodes=supernodes,
            actors=actors,
            gpus_per_actor=gpus_per_actor,
            machines=machines,
        )
    except ValueError as error:
        raise ConfigError([str(error)]) from error
