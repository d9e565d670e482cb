"""The candidate `words`: TF-IDF of words and parts of words, with logistic regression. Needs no base model."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

import linear
from inference import WORDS_MAX_CHARACTERS, Head, Rows, Words, WordsMember, character_grams, word_grams

NAME = "words"
STRENGTHS = (30.0, 10.0, 3.0)
ITERATIONS = 25  # more of them fit what only the training rows have: fewer than it takes to converge
MAX_GRAMS = 200_000  # the most frequent ones
MAX_WEIGHTS = 16_000_000  # grams x labels: 64 MB in the archive, and in a serverless endpoint's memory
MAX_ENTRIES = 60_000_000  # rows x their grams: 1 GB
WORK_PER_SECOND = 10_000_000  # entries x labels, of all that is fitted: measured on two cores
LEAST_TEXTS = 2  # that have a part of a word; nothing can be learnt from one


@dataclass
class WordsCandidate:
    """Fits heads on the words of some of the training rows."""

    words: Words
    rows: Rows
    at: dict[int, int]  # the position in rows of a training row

    @classmethod
    def prepare(cls, texts: Sequence[str], chosen: Sequence[int], n_labels: int) -> "WordsCandidate":
        """Choose the grams and turn the chosen texts into rows."""
        some = [texts[row] for row in chosen]
        words = Words(*choose_grams(some, min(MAX_GRAMS, MAX_WEIGHTS // n_labels)))
        return cls(words, words.rows(some), {row: position for position, row in enumerate(chosen)})

    def fit(self, chosen: list[int], targets: torch.Tensor, n_labels: int, strength: float) -> Head:
        """Fit a head on some of the rows; targets: the label of each of those."""
        return linear.fit(self._features(chosen), targets, n_labels, strength, ITERATIONS)

    def scores(self, chosen: list[int], head: Head) -> torch.Tensor:
        """Return a head's scores for some of the rows: rows x labels."""
        return self._features(chosen) @ head.weight + head.bias

    def _features(self, chosen: list[int]) -> torch.Tensor:
        return linear.sparse(linear.pick(self.rows, [self.at[row] for row in chosen]), len(self.words.rarity))

    def member(self, head: Head) -> WordsMember:
        """Return what is served."""
        return WordsMember(self.words, head)


def save(member: WordsMember, folder: Path) -> None:
    """Write what inference.py loads."""
    grams = {"words": list(member.words.words), "characters": list(member.words.characters)}
    (folder / "words.json").write_text(json.dumps(grams, ensure_ascii=False), encoding="utf-8")
    rarity = torch.tensor(member.words.rarity, dtype=torch.float64)
    save_file({"rarity": rarity, **member.head._asdict()}, folder / "words.safetensors")


def choose_grams(texts: Sequence[str], most: int) -> tuple[list[str], list[str], list[float]]:
    """Return the words, the parts of words, and the rarity of both, as scikit-learn counts it: ln((1+n)/(1+df)) + 1."""
    of_words: Counter[str] = Counter()
    of_parts: Counter[str] = Counter()
    parts_of: dict[str, list[str]] = {}
    for text in texts:
        lower = text[:WORDS_MAX_CHARACTERS].lower()
        of_words.update(set(word_grams(lower)))
        parts: set[str] = set()
        for word in set(lower.split()):
            if word not in parts_of:
                parts_of[word] = character_grams(word)
            parts.update(parts_of[word])
        of_parts.update(parts)
    of_parts = Counter({part: n for part, n in of_parts.items() if n >= LEAST_TEXTS})
    if len(of_words) + len(of_parts) > most:
        counted = [(-n, gram, 0) for gram, n in of_words.items()] + [(-n, gram, 1) for gram, n in of_parts.items()]
        kept = sorted(counted)[:most]
        of_words = Counter({gram: -n for n, gram, block in kept if block == 0})
        of_parts = Counter({gram: -n for n, gram, block in kept if block == 1})
    words, parts_kept = sorted(of_words), sorted(of_parts)
    counts = [of_words[gram] for gram in words] + [of_parts[gram] for gram in parts_kept]
    return words, parts_kept, [math.log((1 + len(texts)) / (1 + n)) + 1 for n in counts]
