"""What can be reproduced: the laboratory's experiments, and the federated tables."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from experiments.runtime.failure import RunFailedError
from experiments.sweep.file import CONF, packaged_names, read_sweep
from experiments.sweep.kinds import FEDERATION
from experiments.sweep.run import sweep
from fedpfn.runs.config import ConfigError
from fedpfn.runs.keys import Scalar


@dataclass(frozen=True)
class Study:
    """An experiment's file that comes with the package: its name there, its title and its data set.

    A federated study has a ``baseline`` that its groups are compared with, and from which they may differ in the keys
    ``across``; an experiment of the laboratory has none.
    """

    name: str
    title: str
    data: str
    baseline: dict[str, Scalar] | None = None
    across: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """The name of its folder, next to those of the other studies."""
        return self.name.rpartition("/")[2]

    @property
    def file(self) -> Path:
        """The file itself."""
        return CONF / f"{self.name}.yaml"


_FEDAVG: dict[str, Scalar] = {"strategy.name": "fedavg"}
# keys that each algorithm sets for itself: the learning rate, the Flower strategy that averages, and the mask ratio
_OWN = ("train.lr", "strategy.base", "mask.ratio")
FEDERATED: dict[str, tuple[dict[str, Scalar], tuple[str, ...]]] = {
    "paper/federated_mnist_mlp": (_FEDAVG, _OWN),
    "paper/federated_mnist_cnn": (_FEDAVG, _OWN),
    "paper/federated_cifar10_cnn": (_FEDAVG, _OWN),
    "paper/federated_cifar10_resnet20": (_FEDAVG, _OWN),
    "sweeps/mnist": (_FEDAVG, ()),
    "sweeps/privacy_mnist": ({"mask.ratio": 0.0}, ()),
    "sweeps/precision_mnist": ({"transport.precision": "float32"}, ("transport.error-feedback",)),
    "sweeps/matching_mnist": (_FEDAVG, ()),
}


def choose(parts: Iterable[str]) -> list[Study]:
    """Return the studies whose names contain one of ``parts``; all studies if there are no parts.

    Raises ``ConfigError`` for a part that no name contains.
    """
    studies, federated = [], []
    for name in packaged_names():
        file = read_sweep(CONF / f"{name}.yaml", workdir=Path.cwd())
        study = Study(name, file.title or file.question, str(file.base.get("data.name", "")))
        if file.kind.name != FEDERATION:
            studies.append(study)
        elif name in FEDERATED:
            federated.append(replace(study, baseline=FEDERATED[name][0], across=FEDERATED[name][1]))
    studies += sorted(federated, key=lambda study: list(FEDERATED).index(study.name))
    wanted = list(parts)
    if strange := [part for part in wanted if not any(part in study.name for study in studies)]:
        raise ConfigError(
            [f"no table or figure is called {part!r}; `fedpfn reproduce --list` shows all" for part in strange]
        )
    return [study for study in studies if not wanted or any(part in study.name for part in wanted)]


def run_study(study: Study, folder: Path, console: Console, *, root: Path | None, quick: bool, jobs: int) -> str:
    """Run the cells that ``folder`` does not hold yet; return why some could not be run, or an empty string."""
    words = data_words(root, study.data) if root is not None and study.data else []
    try:
        done = sweep(
            study.file, words, console, workdir=Path.cwd(), quick=quick, out=folder, jobs=jobs,
            in_process=study.baseline is not None,
        )  # fmt: skip
    except (ConfigError, RunFailedError, ValueError, OSError) as error:
        faults = error.faults if isinstance(error, ConfigError) else [str(error)]
        return "; ".join(dict.fromkeys(fault.splitlines()[0] for fault in faults))
    return "" if done else f"some of its cells failed: `fedpfn watch {folder}`"


def data_words(root: Path, name: str) -> list[str]:
    """Return the words that locate a data set: in a folder of its name below ``root``, otherwise in ``root`` itself.

    A folder of its name that contains ``train`` and ``test`` is a folder of images.
    """
    own = root.absolute() / name
    if (own / "train").is_dir() and (own / "test").is_dir():
        return [f"data.root={own}", "data.name=image-folder"]
    return [f"data.root={own if own.is_dir() else root.absolute()}"]
