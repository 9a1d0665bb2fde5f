"""IMDb reviews as rows of tokens: the folder ``aclImdb`` with train/pos, train/neg, test/pos and test/neg, as unpacked.

This module splits reviews into words; tokens are numbered by the words of the training split: 0 is padding, 1 any other
word, and from 2 on the most frequent words, in order of falling count and then alphabetically. Arrays are cached on
disk (``array_cache``). The unlabelled reviews next to them are not read.
"""

import functools
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from partitions.array_cache import SourceFile, cached_array, fingerprint
from partitions.arrays import DataError, Dataset, Request, Split

_log = logging.getLogger(__name__)

VOCABULARY = 1000  # distinct tokens, including padding and unknown: 998 words
LENGTH = 200
PADDING, UNKNOWN = 0, 1

_CLASSES = ("neg", "pos")  # by label
_FOLDER = "aclImdb"
_FORMAT = "v1"  # part of every array's name: raise it when words, vocabulary or rows change
_BREAK = re.compile(r"<br\s*/?>")
_WORD = re.compile(r"\w+(?:'\w+)*")


def load(request: Request) -> Dataset:
    """Return int64 tokens (N, 200), each split a read-only memory map, negative reviews (0) before positive ones (1).

    Within a class, reviews are in the order of their file names. Raises ``DataError`` for a folder without reviews, a
    file that is not UTF-8 text, and a cache folder that cannot be written to.
    """
    root = Path(request.root).expanduser() / _FOLDER
    listed = {split: [_files(root, f"{split}/{name}") for name in _CLASSES] for split in ("train", "test")}
    of_split = {split: [file for files in by_class for file in files] for split, by_class in listed.items()}
    reviews = {split: [root / file.relative for file in files] for split, files in of_split.items()}
    name = fingerprint(root, of_split["train"] + of_split["test"])
    vocabulary = functools.cache(lambda: build_vocabulary(map(_read_words, reviews["train"])))

    def read(split: str) -> Split:
        tokens = cached_array(
            "imdb",
            f"{name}-{split}-{_FORMAT}",
            lambda path: _write_rows(path, reviews[split], vocabulary),
            cache_dir=request.cache_dir,
            content=f"tokens of {root}",
        )
        labels = np.repeat(np.arange(len(_CLASSES), dtype=np.int64), [len(files) for files in listed[split]])
        return Split(tokens, labels)

    return Dataset("imdb", read("train"), read("test"), len(_CLASSES))


def find_faults(request: Request) -> list[str]:
    """Return which folder is missing, and how to get the reviews: they are not downloaded automatically."""
    looked_for = f"'imdb' is looked for in <data.root>/{_FOLDER}/train/pos, train/neg, test/pos and test/neg"
    remedy = (
        f"unpack aclImdb_v1.tar.gz (https://ai.stanford.edu/~amaas/data/sentiment) and set data.root to the folder "
        f"that holds {_FOLDER}"
    )
    if not request.root:
        return [f"data.root is empty; {looked_for}: {remedy}"]
    root = Path(request.root).expanduser()
    needed = [f"{split}/{name}" for split in ("train", "test") for name in _CLASSES]
    absent = [part for part in needed if not (root / _FOLDER / part).is_dir()]
    if not absent:
        return []
    lacking = "" if len(absent) == len(needed) else f" (it exists, but lacks {', '.join(absent)})"
    return [f"data set 'imdb' is not in {root / _FOLDER}{lacking}; data.download does not fetch it: {remedy}"]


def split_words(text: str) -> list[str]:
    """Return a review's words: lower case, including digits and inner apostrophes, without punctuation and line breaks.

    >>> split_words("I didn't LIKE it.<br /><br />'Dull': 2/10")
    ['i', "didn't", 'like', 'it', 'dull', '2', '10']
    """
    return _WORD.findall(_BREAK.sub(" ", text.lower()))


def build_vocabulary(reviews: Iterable[Iterable[str]], *, size: int = VOCABULARY) -> dict[str, int]:
    """Return the token of each of the ``size`` - 2 most frequent words of ``reviews``, which are lists of words.

    >>> build_vocabulary([["b", "a"], ["c", "a"]], size=4)
    {'a': 2, 'b': 3}
    """
    counts = Counter(word for words in reviews for word in words)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return {word: token for token, word in enumerate(ranked[: size - 2], UNKNOWN + 1)}


def encode(words: Iterable[str], vocabulary: Mapping[str, int], *, length: int = LENGTH) -> NDArray[np.int64]:
    """Return the last ``length`` words as tokens, padded in front.

    The end is kept because a review states its verdict there; and the last step of a row is then always a word.

    >>> encode(["an", "odd", "film"], {"film": 2}, length=5).tolist()
    [0, 0, 1, 1, 2]
    """
    row = np.full(length, PADDING, dtype=np.int64)
    tokens = [vocabulary.get(word, UNKNOWN) for word in words][-length:]
    row[length - len(tokens) :] = tokens
    return row


def _files(root: Path, folder: str) -> list[SourceFile]:
    files = sorted(
        (entry.name, entry.stat())
        for entry in os.scandir(root / folder)
        if entry.name.endswith(".txt") and not entry.name.startswith(".") and entry.is_file()
    )
    if not files:
        raise DataError(f"folder {root / folder} holds no review (.txt)")
    return [SourceFile(f"{folder}/{file}", facts.st_size, facts.st_mtime_ns) for file, facts in files]


def _write_rows(path: Path, reviews: list[Path], vocabulary: Callable[[], Mapping[str, int]]) -> None:
    _log.info("reading %d reviews of %s, once", len(reviews), reviews[0].parents[1])
    # the vocabulary's reviews are read again rather than kept: as lists of words, they are ten times as large
    tokens = vocabulary()
    np.save(path, np.stack([encode(_read_words(review), tokens) for review in reviews]))


def _read_words(path: Path) -> list[str]:
    try:
        return split_words(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"review {path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
