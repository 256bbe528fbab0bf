"""Sentence polarity (Pang and Lee 2005, arXiv cs/0506075): 5,331 positive and 5,331 negative sentences of film reviews."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from sparsefleet import DataInfo, Dataset, TensorData, UserError, hookimpl

_NAMES = ("rt-polarity.neg", "rt-polarity.pos")  # their classes are 0 and 1
_PADDING, _UNKNOWN, _FIRST = 0, 1, 2
_EVERY = 10


class RtPolarity(Dataset):
    """Reads ``rt-polarity.pos`` and ``rt-polarity.neg`` from ``ROOT/rt-polarity``, one sentence per line; every tenth line of each is the test set.

    The files are tokenised already, so a sentence is lower-cased and split at white space. The vocabulary is what occurs most often in the training
    sentences, equal counts by spelling: token 0 is padding at the end, 1 a word outside the vocabulary, 2 the most frequent word. Sentences
    longer than ``length`` lose their end; the longest has 59 tokens.
    """

    name = "rt-polarity"
    paper = "arXiv cs/0506075"

    vocabulary: int = Field(10_000, ge=3, description="tokens, padding and unknown among them")
    length: int = Field(64, ge=1, description="tokens per sentence, padding included")

    @property
    def info(self) -> DataInfo:
        """Follows from the parameters."""
        return DataInfo("classification", (self.length,), 2, vocabulary=self.vocabulary)

    def files(self, root: Path) -> Iterable[Path]:
        """The two files."""
        return _find(root)

    def load(self, root: Path, split: Literal["train", "test"]) -> TensorData:
        """``(n, length)`` int64 tokens; 1 is a positive sentence. The vocabulary is the training split's in both."""
        sentences = [_sentences(path) for path in _find(root)]
        train = [[words for i, words in enumerate(each) if i % _EVERY != _EVERY - 1] for each in sentences]
        numbers = _numbers(train, self.vocabulary)
        chosen = train if split == "train" else [each[_EVERY - 1 :: _EVERY] for each in sentences]
        rows = [[numbers.get(word, _UNKNOWN) for word in words[: self.length]] for each in chosen for words in each]
        x = torch.full((len(rows), self.length), _PADDING, dtype=torch.int64)
        for i, row in enumerate(rows):
            x[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
        return TensorData(x, torch.tensor([label for label, each in enumerate(chosen) for _ in each], dtype=torch.int64))


def _numbers(classes: Sequence[Sequence[Sequence[str]]], vocabulary: int) -> dict[str, int]:
    """The number of every word of the vocabulary, from 2 on."""
    counts = Counter(word for sentences in classes for words in sentences for word in words)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return {word: number for number, word in enumerate(ranked[: vocabulary - _FIRST], start=_FIRST)}


def _sentences(path: Path) -> list[list[str]]:
    """The words of every line that has some."""
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:  # the authors' own files are in Latin-1
        text = raw.decode("latin-1")
    found = [words for line in text.split("\n") if (words := line.lower().split())]
    if len(found) < _EVERY:
        raise UserError(f"{path}: {len(found)} sentences, at least {_EVERY} are needed")
    return found


def _find(root: Path) -> list[Path]:
    folders = [root / "rt-polarity", root / "rt-polaritydata", root]
    for folder in folders:
        paths = [folder / name for name in _NAMES]
        if all(path.is_file() for path in paths):
            return paths
    raise UserError(
        f"{' and '.join(_NAMES)} are not in {' or '.join(map(str, folders))}",
        fix="name the folder that holds rt-polarity with --data or SPARSEFLEET_DATA, or unpack rt-polaritydata.tar.gz (sentence polarity dataset "
        f"v1.0, www.cs.cornell.edu/people/pabo/movie-review-data) in {root}",
    )


@hookimpl
def sparsefleet_datasets() -> list[type[Dataset]]:
    """Registers this module's data set."""
    return [RtPolarity]
