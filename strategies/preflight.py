"""What can be known to be wrong before anything starts: all faults of a config beyond its own values, at once.

Asks those who know: data sets and partitions (``partitions``), models and import strings (``fedpfn``), the run folder.
Cheap: nothing is loaded or built. What needs the data or the model is checked by ``assembly`` before the first message.
"""

from pathlib import Path

import torch

from fedpfn import imports, models
from fedpfn.args import args_of
from fedpfn.measures import resolve_measures
from fedpfn.parts import signature_faults
from fedpfn.runs import folder_fault, is_run, read_run
from fedpfn.runs.arguments import round_plans
from fedpfn.runs.config import RunConfig, settings_of
from fedpfn.runs.identity import used_keys
from fedpfn.runs.trackers import tracker_faults
from fedpfn.training import optimizer_faults
from partitions import datasets, schemes
from strategies.assembly import base_faults


def find_faults(config: RunConfig) -> list[str]:
    """Return every fault of ``config`` that can be found without data, a line each."""
    return [
        *_reference_faults(config),
        *_data_faults(config),
        *_partition_faults(config),
        *models.find_faults(**settings_of(config.model)),
        *optimizer_faults(config.train.optimizer, args_of(config.train.args)),
        *_device_faults(config),
        *_output_faults(config),
        *tracker_faults(config.output.tracker),
    ]


def _reference_faults(config: RunConfig) -> list[str]:
    faults = []
    partition = [name for name in settings_of(config.partition) if name not in ("scheme", "args")]
    for name, section, text, provided, positional in (
        (config.data.name, "data", config.data.args, ["root"], 0),
        (config.partition.scheme, "partition", config.partition.args, partition, 3),
        (config.mask.schedule, "mask", config.mask.args, [], 2),
    ):
        if section == "mask" and config.strategy.name == "fedavg":
            continue
        if not imports.is_reference(name) and text and section == "mask":
            faults.append(f"mask.args is for a schedule of your own; {name} takes none")
        if imports.is_reference(name):
            try:
                part = imports.load(name)
            except ValueError as error:
                faults.append(str(error))
            else:
                # a schedule that is a class is made with the arguments, and called with a round and a plan later
                by_place = 0 if section == "mask" and isinstance(part, type) else positional
                faults += signature_faults(
                    repr(name), part, args_of(text), provided, key=f"{section}.args", positional=by_place
                )
    if not faults:
        try:
            round_plans(config)
            resolve_measures(config.measures)
        except (ValueError, TypeError) as error:
            faults.append(str(error))
    return [*faults, *base_faults(config)]


def _data_faults(config: RunConfig) -> list[str]:
    data = config.data
    if data.root and not Path(data.root).is_absolute():
        # Flower runs a copy of the app from its own folder, where a relative path means something else
        return [f"data.root must be an absolute path, got {data.root!r}"]
    if imports.is_reference(data.name):
        return []
    return datasets.find_faults(
        data.name, data.root, download=data.download, image_size=data.image_size, args=args_of(data.args)
    )


def _partition_faults(config: RunConfig) -> list[str]:
    if imports.is_reference(config.partition.scheme):
        return []
    return schemes.find_faults(
        clients=config.federation.clients, num_examples=None, num_classes=None, **settings_of(config.partition)
    )


def _device_faults(config: RunConfig) -> list[str]:
    if config.device == "cuda" and not torch.cuda.is_available():
        return ["device=cuda, but PyTorch sees no GPU here; use device=cpu or device=auto"]
    return []


def _output_faults(config: RunConfig) -> list[str]:
    output = config.output
    if not output.resume:
        fault = folder_fault(Path(output.dir)) if output.dir else None
        return [fault] if fault else []
    if not output.dir:
        return ["output.resume goes on with the run in output.dir, which is not set"]
    return resume_faults(config, Path(output.dir)) if is_run(Path(output.dir)) else []


def resume_faults(config: RunConfig, path: Path) -> list[str]:
    """Say why ``config`` is not the one to go on with in the run folder ``path``."""
    if (path / "summary.json").is_file():
        return [f"{path} is complete: there is nothing to resume"]
    there, here = used_keys(read_run(path).config), used_keys(config)
    # it was settled for the machine the run started on
    there["device"] = here["device"] = config.device
    differing = [name for name in there | here if there.get(name) != here.get(name)]
    return [
        f"{path} is another run: it has {name}={there.get(name)}, and {here.get(name)} was asked for"
        for name in differing
    ]
