"""The ladder of candidates: climbed from the cheapest, as far as time allows and a gain is plausible.

  words       TF-IDF with logistic regression            (words.py)
  frozen      the base model's vectors with the same     (frozen.py)
  fine-tuned  the base model trained on from there       (fine_tuned.py)
  blend       averaged probabilities of those            (blend.py)

The choice is made inside the training rows. They are divided into folds; what a candidate answers to a fold, it has
learnt from the others. The hold-out is not here: it judges what was chosen, and chooses nothing.

Best is the least log loss of these answers. Chosen is the cheapest candidate that is not worse than the best by more
than the standard error of the difference, neither in log loss nor in macro F1. Fine-tuning costs a hundred times what
the others cost, so it is tried on one fold, leg by leg, and given up where the answers don't improve.
"""

import itertools
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

import blend
import fine_tuned
import frozen
import parallel
import words
from dataset import Example, digest
from inference import CHARACTER_GRAMS, Classifier, Encoder, EncoderMember, Head, Member, word_grams
from metrics import LEAST_PROBABILITY, RESAMPLES, metrics_of_arrays

NAMES = (words.NAME, frozen.NAME, fine_tuned.NAME, blend.NAME)  # cheapest first
FOLDS = 5
JUDGED_ROWS = 2000  # folds are judged until they have that many rows together ...
JUDGED_MAX_ROWS = 10_000  # ... and none has more
JUDGED_MAX_SCORES = 40_000_000  # rows x labels: 160 MB per candidate
FINE_TUNED_JUDGED_ROWS = 300  # its folds are judged until they have that many
# Fine-tuning is not tried where nothing is left to gain: what it gains is seldom more than a third of the errors, and
# that would be less than half a point.
LEAST_ROOM = 0.015  # of macro F1, below 1
# A leg's answers count as better when the log loss of the best so far with them is lower by this share, at least.
LEAST_GAIN = 0.01
MARGIN = 0.8  # of the time that is left, which a step may be expected to need
HEAD_SHARE = 0.3  # of the time that is left, for fitting the heads of a rung ...
HEAD_MAX_SECONDS = 600  # ... and no more than that
SEARCH_ROWS = 5_000  # that suffice to find a head's strength
SAMPLE_TEXTS = 256  # to measure the encoder's speed on, and the number of grams


class NoCandidate(Exception):
    """None of the candidates could be fitted; the text says why."""


@dataclass(frozen=True)
class Task:
    """What is to be learnt."""

    examples: Sequence[Example]  # the training rows
    labels: Sequence[str]
    candidates: frozenset[str]  # that may be chosen, of NAMES
    encoder: Callable[[], Encoder]  # loads the base model
    plan: Callable[[torch.dtype | None], fine_tuned.Plan]  # for a precision
    deadline: float  # by time.monotonic, when the chosen model must be judged; math.inf: none
    texts_after: int  # that go through the chosen model until then
    checkpoints: Path | None  # a folder that outlives an interruption
    say: Callable[[str], None]


class Judged(NamedTuple):
    """Out-of-fold answers."""

    rows: list[int]  # of the training rows
    scores: torch.Tensor  # rows x labels


@dataclass
class Rung:
    """A candidate that was tried."""

    name: str
    seconds: float = 0.0
    judged: Judged | None = None
    temperature: float = 1.0
    note: str = ""  # why it was left out, or not finished
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Entry:
    """What may be chosen: a rung, or a blend of several."""

    name: str
    members: list[str]
    weights: list[float]
    log_loss: float = math.nan
    macro_f1: float = math.nan


@dataclass
class Outcome:
    """What was chosen, and what was tried."""

    classifier: Classifier
    chosen: Entry
    table: list[dict[str, Any]]  # metrics.json's "candidates"


class Checkpoints:
    """What is finished, kept where an interrupted job finds it again. Only data: tensors and JSON."""

    def __init__(self, folder: Path | None) -> None:
        """folder: None to keep nothing."""
        self.folder = folder
        self.started = time.monotonic()
        self.seconds_before = 0.0  # of the runs that were interrupted: the time limit counts them
        if folder and folder.is_dir():
            found = (self._read(path.stem) for path in folder.glob("*.safetensors"))
            self.seconds_before = max((kept[1]["elapsed"] for kept in found if kept), default=0.0)

    def read(self, name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """Return the tensors and facts of that name, in all processes; None when there are none."""
        return parallel.first(lambda: self._read(name))

    def _read(self, name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        path = self.folder and self.folder / f"{name}.safetensors"
        if not path or not path.is_file():
            return None
        opened: Any = safe_open
        try:
            with opened(path, "pt") as file:
                return {key: file.get_tensor(key) for key in [*file.keys()]}, json.loads(file.metadata()["facts"])
        except (SafetensorError, TypeError, ValueError):  # damaged, or another kind of file: computed again
            return None

    def write(self, name: str, tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
        """Keep tensors and facts under a name, whole or not at all."""
        if not self.folder or parallel.rank():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        facts = {**facts, "elapsed": self.seconds_before + time.monotonic() - self.started}
        # Begins with a dot: what is half written is no checkpoint.
        partly = self.folder / f".{name}"
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, partly, {"facts": json.dumps(facts)})
        partly.replace(self.folder / f"{name}.safetensors")


def climb(task: Task) -> Outcome:
    """Try the candidates, choose one and fit it on all rows. Raises NoCandidate."""
    ladder = _Ladder(task)
    ladder.try_words()
    ladder.try_frozen()
    ladder.try_fine_tuned()
    return ladder.finish()


class _Ladder:
    def __init__(self, task: Task) -> None:
        self.task = task
        self.n_labels = len(task.labels)
        index = {label: at for at, label in enumerate(task.labels)}
        self.texts = [example.text for example in task.examples]
        self.targets = torch.tensor([index[example.label] for example in task.examples])
        self.folds = folds(task.examples, self.n_labels)
        self.rungs = {name: Rung(name) for name in NAMES[:3]}
        self.kept = Checkpoints(task.checkpoints)
        self.words: words.WordsCandidate | None = None
        self.heads_rows: dict[str, list[int]] = {}  # that a rung's heads are fitted on
        self.frozen: frozen.FrozenCandidate | None = None
        self.precision: torch.dtype | None = None
        self.rate: float | None = None  # texts per second
        self.fold_model: EncoderMember | None = None
        needs = {blend.NAME: {words.NAME, frozen.NAME, fine_tuned.NAME}, fine_tuned.NAME: {frozen.NAME}}
        self.wanted = task.candidates.union(*(needs.get(name, set()) for name in task.candidates))
        # First of all: one that cannot be used is refused at once.
        self.encoder = task.encoder() if frozen.NAME in self.wanted else None

    # --- the rungs

    def try_words(self) -> None:
        rung = self.rungs[words.NAME]
        if words.NAME not in self.wanted:
            return
        started = time.monotonic()
        if self._restored(rung):
            self._tell(rung)
            return

        def compute() -> tuple[Judged, dict[str, Any]]:
            return self._judge(words.NAME, self._words().fit, self._words().scores, words.STRENGTHS)

        rung.judged, rung.facts = parallel.first(compute)
        self._judged(rung, started)

    def _words(self) -> words.WordsCandidate:
        """The candidate with its features, in the first process."""
        if self.words is None:
            sample = self._sample()
            entries = sum(len(word_grams(text)) + len(CHARACTER_GRAMS) * sum(map(len, text.split())) for text in sample)
            per_row = max(entries, 1) / len(sample)
            rows = self._fitting(
                words.NAME, self.n_labels * per_row, words.WORK_PER_SECOND, words.MAX_ENTRIES / per_row
            )
            judged = [row for fold in self.folds for row in fold]
            self.words = words.WordsCandidate.prepare(self.texts, sorted({*rows, *judged}), self.n_labels)
        return self.words

    def _sample(self) -> list[str]:
        return self.texts[:: max(len(self.texts) // SAMPLE_TEXTS, 1)][:SAMPLE_TEXTS]

    def _fitting(self, name: str, work_per_row: float, per_second: int, most: float = math.inf) -> list[int]:
        """Return the rows that a rung's heads are fitted on: those that time and memory suffice for."""
        kept = self.rungs[name].facts.get("rows")  # an interrupted run's: the heads that it kept belong to these
        seconds = min(HEAD_SHARE * max(self._deadline() - time.monotonic(), 0), HEAD_MAX_SECONDS)
        most = int(max(min(most, seconds * per_second / work_per_row), self.n_labels))
        rows, most = list(range(len(self.texts))), kept or most
        if most < len(rows):
            rows = spread_rows(self.targets.tolist(), self.texts, most)
            note = f"its head is fitted on {most:,} of {len(self.texts):,} rows, to save time and memory"
            self.rungs[name].note = note
            self.task.say(f"{name}: {note}")
        self.heads_rows[name] = rows
        self.rungs[name].facts["rows"] = len(rows)
        return rows

    def try_frozen(self) -> None:
        rung = self.rungs[frozen.NAME]
        if not self.encoder:
            return
        started = time.monotonic()
        sample = self._sample()
        self.precision = fine_tuned.faster_precision(self.encoder, sample[: frozen.TEXTS_AT_ONCE])
        kept = self._restored(rung)
        timed = time.monotonic()
        frozen.embed(self.encoder, sample, self.precision)
        self.rate = parallel.first(lambda: len(sample) / max(time.monotonic() - timed, 1e-6))
        width = frozen.embed(self.encoder, sample[:1], self.precision).shape[1]
        self.heads_rows[frozen.NAME] = parallel.first(
            lambda: self._fitting(frozen.NAME, self.n_labels * width, frozen.WORK_PER_SECOND)
        )
        if kept:
            self.frozen = frozen.FrozenCandidate(self.encoder, kept["vectors"])
            self._tell(rung)
            return
        expected = len(self.texts) / self.rate
        if expected > MARGIN * self._seconds_left():
            rung.note = f"left out: its {len(self.texts):,} texts would take about {_minutes(expected)}"
            self._tell(rung)
            return
        if expected > 30:
            self.task.say(f"frozen: {len(self.texts):,} texts go through the base model, about {_minutes(expected)}")
        vectors = frozen.embed(self.encoder, self.texts, self.precision)
        if not vectors.isfinite().all():
            rung.note = "left out: what the base model makes of some texts is no number"
            self._tell(rung)
            return
        self.frozen = candidate = frozen.FrozenCandidate(self.encoder, vectors)
        rung.judged, rung.facts = parallel.first(
            lambda: self._judge(frozen.NAME, candidate.fit, candidate.scores, frozen.STRENGTHS)
        )
        self._judged(rung, started, vectors=vectors)

    def try_fine_tuned(self) -> None:
        rung = self.rungs[fine_tuned.NAME]
        if fine_tuned.NAME not in self.wanted:
            return
        if not self.frozen:
            rung.note = "left out: it starts from the frozen candidate, which was left out"
            return self._tell(rung)
        alone = not self.task.candidates - {fine_tuned.NAME}
        best = self._best()
        if not alone and 1 - best.macro_f1 < LEAST_ROOM:
            rung.note = f"not tried: {best.name} leaves {100 * (1 - best.macro_f1):.1f} points of macro F1 to gain"
            return self._tell(rung)
        started = time.monotonic()
        kept = self._restored(rung)
        if kept is not None:
            if rung.judged:
                self.fold_model = fine_tuned.load_state(self.frozen.encoder, kept)
            return self._tell(rung)
        rows, found = [], []
        tried = self._fine_tuned_folds()
        for number, fold in enumerate(tried):
            learnt = self._fine_tune(rung, fold, None if alone else best, number, len(tried))
            if rung.note or learnt is None:
                break
            self.fold_model = learnt
            rows += fold
            found.append(self._scores(learnt, fold))
        if rows and not rung.note:
            rung.judged = Judged(rows, torch.cat(found))
        state = fine_tuned.state(self.fold_model) if self.fold_model and not rung.note else {}
        self._judged(rung, started, **state)

    def _fine_tune(
        self, rung: Rung, fold: list[int], best: Entry | None, number: int, runs: int
    ) -> EncoderMember | None:
        """Train without a fold; sets the rung's note when it is given up.

        best: what it must add to; None when it is the only candidate. number: of this run, out of so many.
        """
        assert self.frozen
        assert self.encoder
        plan = self.task.plan(self.precision)
        rows, candidate, started = self._other(fold), self.frozen, time.monotonic()
        strength = self.rungs[frozen.NAME].facts["strength"]
        heads_rows = self._other(fold, self.heads_rows[frozen.NAME])
        head = parallel.first(lambda: candidate.fit(heads_rows, self.targets[heads_rows], self.n_labels, strength))
        steps = plan.steps(len(rows))
        name = f"fine-tuned-{number}"
        kept = self.kept.read(name)

        def after_leg(done: int, member: EncoderMember) -> bool:
            scores = self._scores(member, fold)
            loss, gain = self._gain(best, fold, scores)
            left = self._seconds_left()
            per_step = parallel.first(lambda: (time.monotonic() - started) / max(done - resumed, 1))
            # What remains of this run and of the other folds', and the whole of the last one, on all rows.
            more = runs - number - 1
            expected = per_step * (steps - done + more * steps + plan.steps(len(self.texts)))
            self.task.say(f"fine-tuned: step {done}/{steps}  log loss {loss:.4f}, which lowers the best by {gain:.1%}")
            self.kept.write(name, fine_tuned.state(member), {"done": done})
            if best and gain < LEAST_GAIN:
                rung.note = f"given up after {done} of {steps} steps: its answers add nothing"
            elif expected > MARGIN * left:
                rung.note = f"given up after {done} of {steps} steps: it would take {_minutes(expected)} more"
            return not rung.note

        resumed = kept[1]["done"] if kept else 0
        try:
            member, _ = fine_tuned.fine_tune(
                self.encoder, head, [self.texts[row] for row in rows], self.targets[rows], plan, after_leg,
                (resumed, kept[0]) if kept else None,
            )  # fmt: skip
        except fine_tuned.Diverged as error:
            rung.note = f"left out: {error}. Lower learning_rate (now {plan.learning_rate:g})"
        except torch.OutOfMemoryError:
            if parallel.size() > 1:  # the others wait for this one
                raise
            rung.note = f"left out: the GPU's memory does not suffice for batch_size {plan.batch_size}"
        else:
            return member
        return None

    def _gain(self, best: Entry | None, fold: list[int], scores: torch.Tensor) -> tuple[float, float]:
        """Return the log loss of scores for a fold, and by which share they lower that of the best so far."""
        targets = self.targets[fold]
        own = (scores / blend.temperature(scores, targets)).softmax(dim=-1)
        if not best:
            return float(_losses(own, targets).mean()), 0.0
        before = self._answers(best, fold)
        with_them = blend.average([before, own], blend.weights([before, own], targets))
        before_loss = _losses(before, targets).mean()
        return float(_losses(own, targets).mean()), float(1 - _losses(with_them, targets).mean() / before_loss)

    def _seconds_left(self) -> float:
        """Return the seconds that are left for candidates, the same in all processes."""
        after = self.task.texts_after / self.rate if self.rate else 0.0
        return parallel.first(lambda: self._deadline() - time.monotonic() - after)

    def _deadline(self) -> float:
        return self.task.deadline - self.kept.seconds_before

    # --- folds and answers

    def _other(self, fold: list[int], of: Sequence[int] | None = None) -> list[int]:
        held = set(fold)
        return [row for row in (of if of is not None else range(len(self.texts))) if row not in held]

    def _fine_tuned_folds(self) -> list[list[int]]:
        rows, tried = 0, []
        for fold in self.folds:
            if rows < FINE_TUNED_JUDGED_ROWS:
                tried.append(fold)
                rows += len(fold)
        return tried

    def _judge(
        self,
        name: str,
        fit: Callable[[list[int], torch.Tensor, int, float], Head],
        scores: Callable[[list[int], Head], torch.Tensor],
        strengths: Sequence[float],
    ) -> tuple[Judged, dict[str, Any]]:
        """Return the out-of-fold scores of a head, with the strength that answers the first fold best."""
        judged: list[torch.Tensor] = []
        strength = math.nan
        for number, fold in enumerate(self.folds):
            rows = self._other(fold, self.heads_rows[name])
            if number == 0:
                some = rows[:: math.ceil(len(rows) / SEARCH_ROWS)]
                strength = min(
                    strengths,
                    key=lambda value: self._loss_of(
                        scores(fold, fit(some, self.targets[some], self.n_labels, value)), fold
                    ),
                )
            judged.append(scores(fold, fit(rows, self.targets[rows], self.n_labels, strength)))
        return Judged([row for fold in self.folds for row in fold], torch.cat(judged)), {
            **self.rungs[name].facts,
            "strength": strength,
        }

    def _loss_of(self, scores: torch.Tensor, fold: list[int]) -> float:
        targets = self.targets[fold]
        return float(torch.nn.functional.cross_entropy(scores / blend.temperature(scores, targets), targets))

    def _scores(self, member: EncoderMember, rows: list[int]) -> torch.Tensor:
        vectors = frozen.embed(member.encoder, [self.texts[row] for row in rows], self.precision)
        return vectors @ member.head.weight + member.head.bias

    def _restored(self, rung: Rung) -> dict[str, torch.Tensor] | None:
        """Return the tensors of a rung that an interrupted run finished, and fill it in."""
        kept = self.kept.read(rung.name)
        if not kept:
            return None
        tensors, facts = kept
        if "scores" in tensors:  # else it was given up
            rung.judged = Judged(facts["rows"], tensors["scores"])
        rung.facts, rung.seconds = facts["facts"], facts["seconds"]
        rung.temperature, rung.note = facts["temperature"], facts["note"]
        return tensors

    def _judged(self, rung: Rung, started: float, **more: torch.Tensor) -> None:
        rung.seconds += parallel.first(lambda: time.monotonic() - started)
        tensors = dict(more)
        if rung.judged:
            rung.temperature = blend.temperature(rung.judged.scores, self.targets[rung.judged.rows])
            tensors["scores"] = rung.judged.scores
        facts = {"facts": rung.facts, "seconds": rung.seconds, "temperature": rung.temperature, "note": rung.note}
        self.kept.write(rung.name, tensors, {**facts, "rows": rung.judged.rows if rung.judged else []})
        self._tell(rung)

    def _tell(self, rung: Rung) -> None:
        if rung.judged:
            loss, f1 = self._figures(Entry(rung.name, [rung.name], [1.0]), rung.judged.rows)
            self.task.say(
                f"{rung.name}: log loss {loss:.4f}, macro F1 {f1:.4f} on {len(rung.judged.rows):,} rows out of fold, "
                f"{rung.seconds:.1f} s"
            )
        else:
            self.task.say(f"{rung.name}: {rung.note}")

    def _answers(self, entry: Entry, rows: list[int]) -> torch.Tensor:
        """Return an entry's out-of-fold probabilities for rows: rows x labels."""
        answers = []
        for name in entry.members:
            rung = self.rungs[name]
            assert rung.judged
            at = {row: position for position, row in enumerate(rung.judged.rows)}
            answers.append((rung.judged.scores[[at[row] for row in rows]] / rung.temperature).softmax(dim=-1))
        return blend.average(answers, entry.weights)

    def _figures(self, entry: Entry, rows: list[int]) -> tuple[float, float]:
        answers, targets = self._answers(entry, rows), self.targets[rows]
        return float(_losses(answers, targets).mean()), macro_f1(targets.numpy(), answers.argmax(dim=-1).numpy())

    # --- the choice

    def _common(self) -> list[int]:
        """Return the rows that every finished rung has answered out of fold."""
        rows = [rung.judged.rows for rung in self.rungs.values() if rung.judged]
        common = set(rows[0]).intersection(*rows[1:])
        return [row for row in rows[0] if row in common]

    def _entries(self, allowed: frozenset[str]) -> list[Entry]:
        """Return what may be chosen, cheapest to serve first, with their figures on the rows that all have answered."""
        finished = [name for name, rung in self.rungs.items() if rung.judged]
        if not finished:
            return []
        rows = self._common()
        entries = [Entry(name, [name], [1.0]) for name in finished if name in allowed]
        if blend.NAME in allowed:
            for size in range(2, len(finished) + 1):
                for members in itertools.combinations(finished, size):
                    if {frozen.NAME, fine_tuned.NAME} <= {*members}:
                        continue  # two encoders: twice the time of each answer
                    answers = [self._answers(Entry(name, [name], [1.0]), rows) for name in members]
                    by = blend.weights(answers, self.targets[rows])
                    if all(by):  # else it is a smaller one, which stands there already
                        entries.append(Entry(blend.NAME, list(members), by))
        for entry in entries:
            entry.log_loss, entry.macro_f1 = self._figures(entry, rows)
        return sorted(entries, key=_cost)

    def _best(self) -> Entry:
        entries = self._entries(self.task.candidates) or self._entries(self.wanted)
        return min(entries, key=lambda entry: entry.log_loss)

    def choose(self) -> tuple[Entry, list[Entry]]:
        """Return the cheapest entry that is not worse than the best by more than noise, and all of them."""
        allowed = self.task.candidates
        entries = self._entries(allowed) or self._entries(self.wanted)
        if not entries:
            notes = [f"{rung.name}: {rung.note}" for rung in self.rungs.values() if rung.note]
            why = "; ".join(notes) or f"none of {', '.join(sorted(allowed))} could be tried"
            raise NoCandidate(
                f"No model could be trained: {why}. Allow more candidates, or more time (training_max_runtime_seconds)."
            )
        best = min(entries, key=lambda entry: entry.log_loss)
        rows = self._common()
        targets = self.targets[rows]
        of_best = self._answers(best, rows)
        for entry in entries:
            if entry is best or not worse(self._answers(entry, rows), of_best, targets):
                return entry, entries
        raise AssertionError("the best is not worse than itself")

    def finish(self) -> Outcome:
        """Choose, and fit what was chosen on all rows."""
        chosen, entries = self.choose()
        members: list[Member] = []
        for name in chosen.members:
            started = time.monotonic()
            members.append(self._fit_on_all(name))
            self.rungs[name].seconds += time.monotonic() - started
        temperatures = [self.rungs[name].temperature for name in chosen.members]
        classifier = Classifier(list(self.task.labels), members, chosen.weights, temperatures)
        return Outcome(classifier, chosen, self._table(chosen, entries))

    def _fit_on_all(self, name: str) -> Member:
        if name == words.NAME:

            def fit_words() -> Head:
                candidate = self._words()
                rows = self.heads_rows[words.NAME]
                return candidate.fit(rows, self.targets[rows], self.n_labels, self.rungs[name].facts["strength"])

            head = self._head("words-all", fit_words)
            return parallel.first(lambda: self._words().member(head))
        assert self.frozen
        candidate, strength = self.frozen, self.rungs[frozen.NAME].facts["strength"]
        rows = self.heads_rows[frozen.NAME]
        head = self._head("frozen-all", lambda: candidate.fit(rows, self.targets[rows], self.n_labels, strength))
        if name == frozen.NAME:
            return candidate.member(head)
        return self._fine_tune_on_all(head)

    def _head(self, name: str, fit: Callable[[], Head]) -> Head:
        kept = self.kept.read(name)
        if kept:
            return Head(**kept[0])
        head = parallel.first(fit)
        self.kept.write(name, head._asdict(), {})
        return head

    def _fine_tune_on_all(self, head: Head) -> EncoderMember:
        """Train on all rows; where time runs out, what was trained without the last fold stands in."""
        assert self.frozen
        assert self.fold_model
        plan, name = self.task.plan(self.precision), "fine-tuned-all"
        steps, started = plan.steps(len(self.texts)), time.monotonic()
        kept = self.kept.read(name)
        resumed = kept[1]["done"] if kept else 0
        late, why = False, "time ran out"

        def after_leg(done: int, member: EncoderMember) -> bool:
            nonlocal late
            self.task.say(f"fine-tuned: step {done}/{steps} on all rows")
            self.kept.write(name, fine_tuned.state(member), {"done": done})
            per_step = parallel.first(lambda: (time.monotonic() - started) / max(done - resumed, 1))
            late = per_step * (steps - done) > self._seconds_left()
            return not late

        try:
            member, _ = fine_tuned.fine_tune(
                self.frozen.encoder,
                head,
                self.texts,
                self.targets,
                plan,
                after_leg,
                (resumed, kept[0]) if kept else None,
            )
        except fine_tuned.Diverged as error:
            late, why = True, str(error)
        if late:
            share = 100 * (1 - len(self.folds[-1]) / len(self.texts))
            self.rungs[fine_tuned.NAME].note = f"trained on {share:.0f} % of the rows: {why}"
            return self.fold_model
        return member

    def _table(self, chosen: Entry, entries: list[Entry]) -> list[dict[str, Any]]:
        table = []
        for entry in entries:
            rungs = [self.rungs[name] for name in entry.members]
            table.append({
                "name": entry.name,
                "members": {name: round(by, 3) for name, by in zip(entry.members, entry.weights, strict=True)},
                "log_loss": round(entry.log_loss, 5),
                "macro_f1": round(entry.macro_f1, 5),
                "seconds": round(sum(rung.seconds for rung in rungs), 1),
                "chosen": entry is chosen,
                "note": "; ".join(rung.note for rung in rungs if rung.note),
            })  # fmt: skip
        for rung in self.rungs.values():
            if not rung.judged and rung.note:
                table.append({
                    "name": rung.name, "members": {}, "log_loss": None, "macro_f1": None,
                    "seconds": round(rung.seconds, 1), "chosen": False, "note": rung.note,
                })  # fmt: skip
        return table


def folds(examples: Sequence[Example], n_labels: int) -> list[list[int]]:
    """Return the rows of the folds that are judged; which ones depends on the texts alone, and rows with the same text
    stand in the same fold. Each label's texts are spread over the folds.
    """
    rows_of: dict[str, list[int]] = {}
    for row, example in enumerate(examples):
        rows_of.setdefault(example.text, []).append(row)
    order = sorted(rows_of, key=lambda text: (examples[rows_of[text][0]].label, digest(f"fold {text}")))
    most = min(JUDGED_MAX_ROWS, max(JUDGED_MAX_SCORES // n_labels, 1))
    count = max(FOLDS, math.ceil(len(examples) / most))
    found: list[list[int]] = [[] for _ in range(count)]
    for at, text in enumerate(order):
        found[at % count] += rows_of[text]
    judged: list[list[int]] = []
    for fold in found:
        if fold and sum(map(len, judged)) < min(JUDGED_ROWS, most):
            judged.append(sorted(fold))
    return judged


def spread_rows(targets: Sequence[int], texts: Sequence[str], most: int) -> list[int]:
    """Return so many of the rows, in the labels' proportions; which ones depends on the texts alone."""
    of_label: dict[int, list[int]] = {}
    for row in sorted(range(len(texts)), key=lambda row: digest(f"head {texts[row]}")):
        of_label.setdefault(targets[row], []).append(row)
    turns = sorted((at / len(rows), row) for rows in of_label.values() for at, row in enumerate(rows))
    return sorted(row for _, row in turns[:most])


def worse(answers: torch.Tensor, of_best: torch.Tensor, targets: torch.Tensor) -> bool:
    """Whether answers are worse than the best ones by more than the standard error, in log loss or in macro F1."""
    difference = _losses(answers, targets) - _losses(of_best, targets)
    if float(difference.mean()) > float(difference.std(correction=0)) / math.sqrt(len(targets)):
        return True
    expected = targets.numpy()
    labels, labels_of_best = answers.argmax(dim=-1).numpy(), of_best.argmax(dim=-1).numpy()
    chance = np.random.default_rng(0)
    resampled = []
    for _ in range(RESAMPLES):
        rows = chance.integers(len(expected), size=len(expected))
        resampled.append(macro_f1(expected[rows], labels_of_best[rows]) - macro_f1(expected[rows], labels[rows]))
    lead = macro_f1(expected, labels_of_best) - macro_f1(expected, labels)
    return bool(lead > np.std(resampled))


def macro_f1(expected: Any, predicted: Any) -> float:
    """Return the mean F1 of the labels that occur among the expected ones; both are arrays of labels' indices."""
    return float(metrics_of_arrays(expected, predicted)["macro_f1"])


def _losses(probabilities: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return -probabilities.gather(1, targets[:, None]).squeeze(1).clamp(min=LEAST_PROBABILITY).log()


def _cost(entry: Entry) -> tuple[bool, bool, int]:
    """Sorts by what a request costs, then by what the training costs."""
    return fine_tuned.NAME in entry.members, frozen.NAME in entry.members, len(entry.members)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} minutes"
