"""Data sets by name: a table of the built-in ones, a function that loads one, and one that finds faults beforehand.

``arrays`` defines a data set; ``digits``, ``diabetes``, ``torchvision_data``, ``image_folder``, ``imdb`` and, for a
user's callable, ``user_loader`` read them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol

from partitions import diabetes, digits, image_folder, imdb, torchvision_data, user_loader
from partitions.arrays import DataError, Dataset, Kind, LabelForm, Request, Split
from partitions.labels import BINS, RequestedForm, in_form

__all__ = [
    "DATASETS",
    "FACTS",
    "DataError",
    "Dataset",
    "Facts",
    "Kind",
    "Loader",
    "Split",
    "facts_of",
    "find_faults",
    "load",
]

Loader = Callable[..., Any]


class _Source(Protocol):
    """A built-in data set: any module with these two functions."""

    def load(self, request: Request, /) -> Dataset: ...

    def find_faults(self, request: Request, /) -> list[str]: ...


DATASETS: dict[str, _Source] = {
    "digits": digits,
    "mnist": torchvision_data.MNIST,
    "fashion-mnist": torchvision_data.FASHION_MNIST,
    "cifar10": torchvision_data.CIFAR10,
    "cifar100": torchvision_data.CIFAR100,
    "image-folder": image_folder,
    "imdb": imdb,
    "digits-properties": digits.Properties(),
    "diabetes": diabetes,
}


@dataclass(frozen=True)
class Facts:
    """What is known about a built-in data set before it is read.

    ``num_classes`` as in ``Dataset``; ``strata`` is the number of classes by which schemes distribute the examples.
    """

    input_shape: tuple[int, ...]
    num_classes: int
    train_examples: int
    test_examples: int
    tokens: bool = False
    labels: LabelForm = "classes"
    strata: int = 0

    def __post_init__(self) -> None:
        if not self.strata:
            object.__setattr__(self, "strata", self.num_classes)


_FORMS: dict[str, str] = {
    "classes": "classes",
    "values": "values of a target",
    "multi-hot": "rows of 0 and 1, one column for each label",
}
_GREY, _COLOUR = (1, 28, 28), (3, 32, 32)

FACTS: dict[str, Facts] = {
    "digits": Facts((1, 8, 8), 10, 1438, 359),
    "mnist": Facts(_GREY, 10, 60_000, 10_000),
    "fashion-mnist": Facts(_GREY, 10, 60_000, 10_000),
    "cifar10": Facts(_COLOUR, 10, 50_000, 10_000),
    "cifar100": Facts(_COLOUR, 100, 50_000, 10_000),
    "imdb": Facts((imdb.LENGTH,), 2, 25_000, 25_000, tokens=True),
    "digits-properties": Facts((1, 8, 8), 3, 1438, 359, labels="multi-hot", strata=6),
    "diabetes": Facts((10,), 1, diabetes.TRAIN, diabetes.TEST, labels="values", strata=BINS),
}


def facts_of(name: str, labels: RequestedForm = "") -> Facts | None:
    """Return what is known about a data set with its labels in a form; None if they cannot take that form.

    >>> facts_of("digits", "values").num_classes, facts_of("diabetes", "classes")
    (1, None)
    """
    facts = FACTS.get(name)
    if facts is None or labels in ("", facts.labels):
        return facts
    # integers are valid as values too
    if labels == "values" and facts.labels == "classes":
        return replace(facts, num_classes=1, labels="values", strata=BINS)
    return None


def load(
    name: str | Loader,
    root: str = "",
    *,
    download: bool = False,
    image_size: int = 0,
    args: Mapping[str, Any] | None = None,
    cache_dir: Path | None = None,
    labels: RequestedForm = "",
    part: tuple[int, int] | None = None,
) -> Dataset:
    """Return a built-in data set by its name, or what a user's loader returns.

    Parameters
    ----------
    name
        A name in ``DATASETS``, or the user's loader (see ``user_loader``).
    root
        Folder that holds the data; the digits and ``diabetes`` need none. A user's loader gets it if it takes
        ``root=``.
    download
        Whether data sets of torchvision are downloaded into ``root`` if they are missing.
    image_size
        For ``image-folder``: side, in pixels, of the square that images are resized and cropped to; 0 keeps images,
        which must have the same size, as they are.
    args
        Keyword arguments of a user's loader; built-in data sets take none.
    cache_dir
        Folder that caches the decoded images of ``image-folder`` and the tokens of ``imdb``; None takes
        ``array_cache.default_folder``.
    labels
        Form to convert labels to (``partitions.labels``); by default they are unchanged.
    part
        Number of the part to read and number of parts, for a user's loader that ``reads_parts``.

    Returns
    -------
    Dataset
        Train and test data.

    Raises
    ------
    DataError
        For all faults that ``find_faults`` finds, and for data that turn out to be unreadable or wrong.
    """
    faults = find_faults(name, root, download=download, image_size=image_size, args=args, labels=labels)
    if faults:
        raise DataError("; ".join(faults))
    if not isinstance(name, str):
        return user_loader.load(name, root, args, labels=labels, part=part)
    dataset = DATASETS[name].load(
        Request(root=root, download=download, image_size=image_size, cache_dir=cache_dir),
    )
    return in_form(dataset, labels)


def find_faults(
    name: str | Loader,
    root: str,
    *,
    download: bool,
    image_size: int = 0,
    args: Mapping[str, Any] | None = None,
    labels: RequestedForm = "",
) -> list[str]:
    """Return what would make ``load`` fail, one line per fault, from names and folders alone: no file is read."""
    if isinstance(name, str) and name not in DATASETS:
        near = get_close_matches(name.lower(), DATASETS, n=1)
        meant = f" (did you mean {near[0]!r}?)" if near else ""
        return [f"no data set {name!r}{meant}; built in: {', '.join(DATASETS)}; your own: 'package.module:loader'"]
    faults = []
    if image_size < 0:
        faults.append(f"data.image-size = {image_size} must be 0 (images as they are) or a side in pixels")
    if image_size > 0 and name != "image-folder":
        faults.append(f"data.image-size = {image_size} is for data.name = 'image-folder' only; set it to 0")
    if isinstance(name, str):
        faults += [f"data.args.{given} is for your own loader; {name!r} takes none" for given in args or ()]
        if name in FACTS and facts_of(name, labels) is None:
            faults.append(
                f"the labels of data set {name!r} are {_FORMS[FACTS[name].labels]}; data.task needs {_FORMS[labels]}"
            )
        faults += DATASETS[name].find_faults(Request(root=root, download=download, image_size=image_size))
    return faults
