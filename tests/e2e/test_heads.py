"""What the candidates are made of, without a base model: words as numbers, logistic regression, blends, and the choice.

scikit-learn is the measure where it has the same thing. Neither training nor serving needs it.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

import blend
import inference
import ladder
import linear
import tiny_model
import words
from dataset import Example, read_channel
from inference import Head, Words, character_grams, word_grams

torch.set_num_threads(1)

SAMPLE = Path(__file__).resolve().parents[2] / "scripts" / "sample"
# Words that come back, in any script, beside texts of any characters at all.
TEXTS = st.one_of(
    st.lists(st.sampled_from(["snow", "Snow", "a", "ß", "雪", "雪が", "don't", "1,000", "\x00", "🙂", "İ"])).map(
        " ".join
    ),
    st.text(max_size=40),
)


# --- words as numbers -------------------------------------------------------------------------------


@given(TEXTS)
@example("x" * 300)
def test_the_grams_of_words_are_the_words_and_the_pairs_that_follow_each_other(text: str) -> None:
    found = word_grams(text)
    alone = [gram for gram in found if " " not in gram]
    assert found == alone + [f"{first} {second}" for first, second in itertools.pairwise(alone)]
    assert all(2 <= len(gram) <= inference.WORD_MAX_CHARACTERS for gram in alone)
    assert all(gram in text for gram in alone)


@given(st.text(max_size=12).filter(lambda text: not any(map(str.isspace, text))))
@example("x" * 300)
def test_the_parts_of_a_word_are_all_of_two_to_five_characters_with_its_edges(word: str) -> None:
    padded = f" {word[: inference.WORD_MAX_CHARACTERS]} "
    starts = range(len(padded))
    assert Counter(character_grams(word)) == Counter(
        padded[start:end] for start in starts for end in starts[start + 1 :] if end - start in (2, 3, 4, 5)
    ) + Counter(padded[start:] for start in starts if len(padded) - start in (2, 3, 4, 5))


def columns_of(fitted: Words, text: str) -> tuple[dict[int, float], dict[int, float]]:
    """A text's row, as {column: weight}, of either block."""
    starts, indices, values = fitted.rows([text])
    assert [*starts] == [0, len(indices)]
    row = dict(zip(indices, values, strict=True))
    assert len(row) == len(indices), "a column stands in it twice"
    edge = len(fitted.words)
    return (
        {column: value for column, value in row.items() if column < edge},
        {column: value for column, value in row.items() if column >= edge},
    )


@given(st.lists(TEXTS, min_size=2, max_size=6), TEXTS)
def test_each_block_of_a_row_has_the_length_1_and_what_is_unknown_is_left_out(texts: list[str], other: str) -> None:
    fitted = Words(*words.choose_grams(texts, words.MAX_GRAMS))
    assert len(fitted.rarity) == len(fitted.words) + len(fitted.characters)
    for text in (*texts, other):
        lower = text.lower()
        known = (
            Counter(gram for gram in word_grams(lower) if gram in fitted.words),
            Counter(gram for word in lower.split() for gram in character_grams(word) if gram in fitted.characters),
        )
        of_gram = fitted.words, fitted.characters
        for block, counts, columns in zip(columns_of(fitted, text), known, of_gram, strict=True):
            assert block.keys() == {columns[gram] for gram in counts}
            assert not block or math.hypot(*block.values()) == pytest.approx(1, abs=1e-6)
            weights = {columns[gram]: (1 + math.log(n)) * fitted.rarity[columns[gram]] for gram, n in counts.items()}
            length = math.hypot(*weights.values())
            assert block == pytest.approx({column: weight / length for column, weight in weights.items()}, rel=1e-6)


@pytest.mark.parametrize("texts", [["", " "], ["🙂", "☃"], ["a", "b"]], ids=repr)
def test_texts_without_a_word_or_a_common_part_are_rows_of_nothing(texts: list[str]) -> None:
    fitted = Words(*words.choose_grams(texts, words.MAX_GRAMS))
    assert [*fitted.rows(texts).starts] == [0, 0, 0]
    member = inference.WordsMember(fitted, Head(torch.zeros(len(fitted.rarity), 2), torch.tensor([1.0, 2.0])))
    assert member.scores(texts).tolist() == [[1, 2], [1, 2]]


def sample_texts() -> list[str]:
    examples, _ = read_channel(SAMPLE, "text", "label")
    return [*(example.text for example in examples[::4]), "Ein Straßenname, İstanbul", "雪が降る 雪が降る", "a b c", ""]


def test_the_rows_are_those_of_scikit_learn() -> None:
    texts = sample_texts()
    common: dict[str, Any] = {"sublinear_tf": True, "dtype": np.float64}
    of_words = TfidfVectorizer(token_pattern=r"\w\w+", ngram_range=(1, 2), **common)
    of_parts = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), min_df=words.LEAST_TEXTS, **common)
    expected = np.hstack([vectorizer.fit_transform(texts).toarray() for vectorizer in (of_words, of_parts)])
    fitted = Words(*words.choose_grams(texts, words.MAX_GRAMS))
    assert [*fitted.words] == of_words.get_feature_names_out().tolist()
    assert [*fitted.characters] == of_parts.get_feature_names_out().tolist()
    found = linear.sparse(fitted.rows(texts), len(fitted.rarity)).to_dense().numpy()
    assert np.allclose(found, expected, atol=1e-6)


def test_where_there_are_too_many_grams_the_most_frequent_are_kept() -> None:
    texts = sample_texts()
    all_words, all_parts, rarity = words.choose_grams(texts, words.MAX_GRAMS)
    some_words, some_parts, rarity_of_some = words.choose_grams(texts, 100)
    rarity_of = dict(zip([*all_words, *all_parts], rarity, strict=True))
    assert len(some_words) + len(some_parts) == len(rarity_of_some) == 100
    assert {*some_words} <= {*all_words}
    assert {*some_parts} <= {*all_parts}
    assert max(rarity_of_some) <= sorted(rarity_of.values())[100]


def test_requests_without_end_do_not_fill_the_memory() -> None:
    fitted = Words(["ab"], [" a"], [1.0, 1.0])
    texts = [" ".join(f"a{number}" for number in range(at, at + 3000)) for at in range(0, 120_000, 3000)]
    assert len(fitted.rows(texts).indices) == len(texts)
    assert len(fitted._parts) <= 100_001


# --- logistic regression ----------------------------------------------------------------------------


def problem(rows: int = 60, columns: int = 8, labels: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Features, half of them 0, and targets that depend on them and on chance; not every label is seen."""
    torch.manual_seed(5)
    features = torch.randn(rows, columns) * (torch.rand(rows, columns) < 0.5)
    noise = torch.randn(rows, labels)
    noise[:, -1] = -math.inf
    return features, (features @ torch.randn(columns, labels) + noise).argmax(dim=-1)


def objective(head: Head, features: torch.Tensor, targets: torch.Tensor, strength: float) -> torch.Tensor:
    penalty = head.weight.square().sum() / (2 * strength * len(targets))
    return torch.nn.functional.cross_entropy(features @ head.weight + head.bias, targets) + penalty


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("at_once", [10**6, 28])
def test_the_gradient_is_that_of_autograd(monkeypatch: pytest.MonkeyPatch, kind: str, at_once: int) -> None:
    features, targets = problem()
    monkeypatch.setattr(linear, "SCORES_AT_ONCE", at_once)  # 7 rows at a time
    seen: list[Any] = []

    class Optimizer:
        """Looks at one point, and stays there."""

        def __init__(self, parameters: list[torch.Tensor], **_: Any) -> None:
            self.parameters = parameters

        def step(self, closure: Any) -> torch.Tensor:
            with torch.no_grad():
                for parameter in self.parameters:
                    parameter.copy_(torch.randn(parameter.shape))
            loss: torch.Tensor = closure()
            seen.append((loss, *(parameter.grad for parameter in self.parameters)))
            return loss

    monkeypatch.setattr(torch.optim, "LBFGS", Optimizer)
    given = features.to_sparse_csr() if kind == "sparse" else features
    head = Head(*(part.requires_grad_() for part in linear.fit(given, targets, 4, 0.7, 1)))
    expected = objective(head, features, targets, 0.7)
    expected.backward()
    [(loss, of_weight, of_bias)] = seen
    assert torch.allclose(loss, expected, atol=1e-6)
    assert torch.allclose(of_weight, head.weight.grad, atol=1e-6)
    assert torch.allclose(of_bias, head.bias.grad, atol=1e-6)


@pytest.mark.parametrize("strength", [0.01, 1.0, 30.0])
def test_the_optimum_is_that_of_scikit_learn(strength: float) -> None:
    features, targets = problem(labels=3)
    targets[:3] = torch.arange(3)
    expected = LogisticRegression(C=strength, tol=1e-9, max_iter=10_000).fit(features.double(), targets)
    found = linear.fit(features, targets, 3, strength, 500)
    probabilities = (features @ found.weight + found.bias).softmax(dim=-1)
    assert np.allclose(probabilities, expected.predict_proba(features.double()), atol=1e-3)
    assert np.allclose(found.weight.T, expected.coef_, atol=1e-2)


def test_dense_sparse_and_in_parts_is_the_same_head(monkeypatch: pytest.MonkeyPatch) -> None:
    features, targets = problem()
    whole = linear.fit(features, targets, 4, 1.0, 60)
    sparse = linear.fit(features.to_sparse_csr(), targets, 4, 1.0, 60)
    monkeypatch.setattr(linear, "SCORES_AT_ONCE", 4)
    in_parts = [linear.fit(given, targets, 4, 1.0, 60) for given in (features, features.to_sparse_csr())]
    for other in (sparse, *in_parts):
        assert torch.allclose(other.weight, whole.weight, atol=1e-3)
        # A number added to every label's bias changes nothing.
        found, expected = ((features @ head.weight + head.bias).softmax(dim=-1) for head in (other, whole))
        assert torch.allclose(found, expected, atol=1e-3)


def test_a_head_of_standardized_features_takes_them_as_they_are() -> None:
    features, targets = problem()
    features = torch.cat([features * 50 + 7, torch.full((len(features), 1), 3.0)], dim=1)  # and a column without news
    standard, mean, deviation = linear.standardize(features)
    assert deviation[-1] == 1
    head, of_standard = linear.fit_dense(features, targets, 4, 0.3, 60), linear.fit(standard, targets, 4, 0.3, 60)
    assert torch.allclose(
        features @ head.weight + head.bias, standard @ of_standard.weight + of_standard.bias, atol=1e-3
    )
    assert torch.allclose((features - mean) / deviation, standard)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_without_any_feature_the_head_answers_with_the_labels_shares(kind: str) -> None:
    features, targets = torch.zeros(40, 0), torch.tensor([0] * 30 + [1] * 10)
    head = linear.fit(features.to_sparse_csr() if kind == "sparse" else features, targets, 2, 1.0, 30)
    assert head.weight.shape == (0, 2)
    assert head.bias.softmax(dim=-1).tolist() == pytest.approx([0.75, 0.25], abs=0.01)


def test_features_that_are_no_numbers_are_an_error() -> None:
    features, targets = problem()
    features[3, 3] = math.nan
    with pytest.raises(FloatingPointError, match="the loss of a logistic regression became nan"):
        linear.fit(features, targets, 4, 1.0, 10)


def test_rows_are_picked_in_the_order_that_is_asked_for() -> None:
    fitted = Words(*words.choose_grams(sample_texts(), words.MAX_GRAMS))
    rows = fitted.rows(sample_texts())
    whole = linear.sparse(rows, len(fitted.rarity)).to_dense()
    assert torch.equal(linear.sparse(linear.pick(rows, [5, 0, 5]), len(fitted.rarity)).to_dense(), whole[[5, 0, 5]])


# --- blends -----------------------------------------------------------------------------------------


def answers(right: Sequence[float]) -> torch.Tensor:
    """Probabilities of two labels; of the first one, which is right, as given."""
    first = torch.tensor(right)
    return torch.stack([first, 1 - first], dim=1)


def test_the_weights_have_the_least_log_loss() -> None:
    chance = random.Random(2)
    members = [
        answers([chance.random() ** 0.5 for _ in range(80)]),
        answers([chance.random() ** 0.3 for _ in range(80)]),
    ]
    targets = torch.zeros(80, dtype=torch.long)
    first, second = blend.weights(members, targets)
    assert first + second == pytest.approx(1)

    def loss(weight: float) -> float:
        mixed = blend.average(members, [weight, 1 - weight])[:, 0]
        return float(-mixed.log().mean())

    assert loss(first) <= min(loss(at / 100) for at in range(101)) + 1e-4


def test_a_member_that_adds_next_to_nothing_has_no_weight() -> None:
    good, bad = answers([0.9] * 50), answers([0.2] * 50)
    assert blend.weights([good, bad], torch.zeros(50, dtype=torch.long)) == [1, 0]
    assert blend.weights([good, answers([0.0] * 50), bad], torch.zeros(50, dtype=torch.long)) == [1, 0, 0]


def test_answers_that_are_too_sure_get_a_temperature_above_1_and_timid_ones_below() -> None:
    torch.manual_seed(1)
    scores = torch.randn(4000, 3)
    targets = torch.distributions.Categorical(logits=scores).sample()
    fitting = blend.temperature(scores, targets)
    assert fitting == pytest.approx(1, rel=0.11)
    assert blend.temperature(scores * 3, targets) == pytest.approx(3 * fitting, rel=0.11)
    assert blend.temperature(scores / 2, targets) == pytest.approx(fitting / 2, rel=0.11)
    assert blend.temperature(scores * 0, targets) in blend.TEMPERATURES


# --- folds ------------------------------------------------------------------------------------------

ROWS = st.lists(
    st.builds(Example, st.sampled_from([f"text {at}" for at in range(25)]), st.sampled_from("abc")), min_size=1
)


@given(ROWS, st.integers(2, 8000))
def test_each_row_is_in_one_fold_and_the_same_text_in_the_same_one(rows: list[Example], n_labels: int) -> None:
    found = ladder.folds(rows, n_labels)
    assert sorted(row for fold in found for row in fold) == [*range(len(rows))]
    fold_of = {row: number for number, fold in enumerate(found) for row in fold}
    texts = {(example.text, fold_of[row]) for row, example in enumerate(rows)}
    assert len(texts) == len({example.text for example in rows})
    assert len(found) == min(5, len({example.text for example in rows}))


@given(st.permutations([Example(f"text {at}", "ab"[at % 2]) for at in range(12)]))
@settings(max_examples=20)
def test_folds_depend_on_the_texts_alone(rows: list[Example]) -> None:
    def texts(rows: list[Example]) -> list[list[str]]:
        return [sorted(rows[row].text for row in fold) for fold in ladder.folds(rows, 2)]

    assert texts(rows) == texts(sorted(rows))


def test_each_label_is_spread_over_the_folds() -> None:
    rows = [Example(f"{label} {at}", label) for label, n in (("many", 200), ("few", 10)) for at in range(n)]
    for fold in ladder.folds(rows, 2):
        assert Counter(rows[row].label for row in fold) == {"many": 40, "few": 2}


@pytest.mark.parametrize(
    ("rows", "n_labels", "judged", "largest"),
    [
        (1_000, 2, 1_000, 200),
        (5_000, 2, 2_000, 1_000),
        (100_000, 2, 10_000, 10_000),
        (30_000, 20_000, 2_000, 2_000),  # 20,000 scores of each row
    ],
)
def test_as_many_rows_are_judged_as_it_takes_and_memory_has_room_for(
    rows: int, n_labels: int, judged: int, largest: int
) -> None:
    found = ladder.folds([Example(f"text {at}", "a") for at in range(rows)], n_labels)
    assert sum(map(len, found)) == judged
    assert max(map(len, found)) == largest


@given(ROWS, st.integers(1, 60))
def test_the_rows_that_a_head_is_fitted_on_have_every_label_in_proportion(rows: list[Example], most: int) -> None:
    labels = sorted({example.label for example in rows})
    targets = [labels.index(example.label) for example in rows]
    found = ladder.spread_rows(targets, [example.text for example in rows], most)
    assert found == sorted(set(found))
    assert len(found) == min(most, len(rows))
    of_all, of_found = Counter(targets), Counter(targets[row] for row in found)
    if most >= len(labels):
        assert of_found.keys() == of_all.keys()
    for label, n in of_all.items():
        assert abs(of_found[label] - n * len(found) / len(rows)) <= len(labels)


# --- the choice -------------------------------------------------------------------------------------


def judged(right: Sequence[float], rows: int | None = None) -> ladder.Judged:
    """Out-of-fold answers to rows of the labels a, b, a, b, ...: the right one's probability as given."""
    targets = torch.arange(len(right)) % 2
    first = torch.where(targets == 0, torch.tensor(right), 1 - torch.tensor(right))
    return ladder.Judged(
        [*range(rows or len(right))], torch.stack([first, 1 - first], dim=1).log()[: rows or len(right)]
    )


def ladder_of(allowed: str = "words,frozen,fine-tuned,blend", n: int = 400, **found: ladder.Judged) -> ladder._Ladder:
    """A ladder whose rungs have these answers."""
    made = ladder._Ladder(
        ladder.Task(
            [Example(f"text {at}", "ab"[at % 2]) for at in range(n)],
            ["a", "b"],
            frozenset(allowed.split(",")),
            lambda: None,  # type: ignore[arg-type, return-value]
            lambda _: None,  # type: ignore[arg-type, return-value]
            math.inf,
            0,
            None,
            lambda _: None,
        )
    )
    for name, answers_of in found.items():
        made.rungs[name.replace("_", "-")].judged = answers_of
    return made


def drawn(seed: int, share: float, n: int = 400) -> list[float]:
    """The right label's probability: 0.9 for so many of n rows, 0.1 for the others."""
    chance = random.Random(seed)
    return [0.9 if chance.random() < share else 0.1 for _ in range(n)]


def test_of_candidates_that_answer_alike_the_cheapest_is_chosen() -> None:
    good = drawn(1, 0.9)
    made = ladder_of(words=judged(good), frozen=judged(good), fine_tuned=judged(good))
    chosen, entries = made.choose()
    assert (chosen.name, chosen.members, chosen.weights) == ("words", ["words"], [1.0])
    assert [entry.name for entry in entries] == ["words", "frozen", "blend", "fine-tuned", "blend"]


def test_within_noise_the_cheaper_one_is_chosen() -> None:
    # Other rows are wrong, but as many.
    made = ladder_of("words,frozen", words=judged(drawn(1, 0.88)), frozen=judged(drawn(2, 0.88)))
    chosen, (words_entry, frozen_entry) = made.choose()
    assert abs(words_entry.log_loss - frozen_entry.log_loss) < 0.1
    assert chosen.name == "words"


@pytest.mark.parametrize("best", ["words", "frozen", "fine_tuned"])
def test_a_clear_winner_is_chosen(best: str) -> None:
    rungs = {name: judged(drawn(at, 0.75)) for at, name in enumerate(("words", "frozen", "fine_tuned"))}
    rungs[best] = judged(drawn(9, 0.97))
    chosen, entries = ladder_of("words,frozen,fine-tuned", **rungs).choose()
    assert chosen.name == best.replace("_", "-")
    assert min(entries, key=lambda entry: entry.log_loss) is chosen


def test_members_that_make_up_for_each_other_are_blended() -> None:
    # Each is right, and knows it, where the other one knows nothing.
    first = [0.98 if at % 4 < 2 else 0.5 for at in range(400)]
    second = [0.5 if at % 4 < 2 else 0.98 for at in range(400)]
    made = ladder_of(words=judged(first), frozen=judged(second))
    chosen, _ = made.choose()
    assert (chosen.name, chosen.members) == ("blend", ["words", "frozen"])
    assert chosen.weights == pytest.approx([0.5, 0.5], abs=0.02)


def test_two_encoders_are_not_blended() -> None:
    chance = [[random.Random(f"{seed} {at}").uniform(0.4, 0.99) for at in range(400)] for seed in range(3)]
    made = ladder_of(words=judged(chance[0]), frozen=judged(chance[1]), fine_tuned=judged(chance[2]))
    _, entries = made.choose()
    blends = [entry.members for entry in entries if entry.name == "blend"]
    assert blends == [["words", "frozen"], ["words", "fine-tuned"]]


def test_candidates_are_compared_on_the_rows_that_all_of_them_answered() -> None:
    # On the first fifth, which is all that fine-tuning answered, words are perfect; and worthless on the others.
    made = ladder_of("words,fine-tuned", words=judged([0.999] * 80 + [0.01] * 320), fine_tuned=judged([0.9] * 80, 80))
    chosen, (words_entry, _) = made.choose()
    assert (chosen.name, words_entry.macro_f1) == ("words", 1)


def test_what_may_not_be_chosen_is_not() -> None:
    good, bad = judged(drawn(1, 0.99)), judged(drawn(2, 0.6))
    chosen, entries = ladder_of("words,fine-tuned", words=bad, frozen=good, fine_tuned=bad).choose()
    assert chosen.name == "words"
    assert [entry.name for entry in entries] == ["words", "fine-tuned"]


def test_where_nothing_that_is_allowed_was_finished_what_it_needed_is_chosen() -> None:
    chosen, _ = ladder_of("fine-tuned", frozen=judged(drawn(1, 0.9))).choose()
    assert chosen.name == "frozen"


def test_where_nothing_was_finished_the_reasons_are_told() -> None:
    made = ladder_of("frozen,fine-tuned")
    made.rungs["frozen"].note = "left out: its 400 texts would take about 3 minutes"
    made.try_fine_tuned()
    with pytest.raises(ladder.NoCandidate) as caught:
        made.choose()
    assert str(caught.value) == (
        "No model could be trained: frozen: left out: its 400 texts would take about 3 minutes; "
        "fine-tuned: left out: it starts from the frozen candidate, which was left out. Allow more candidates, or more "
        "time (training_max_runtime_seconds)."
    )


def test_fine_tuning_is_measured_by_what_else_may_be_chosen() -> None:
    """Not by the frozen candidate, which it starts from, when that may not be chosen itself."""
    made = ladder_of("words,fine-tuned", words=judged(drawn(2, 0.6)), frozen=judged([0.999] * 400))
    assert made._best().name == "words"


def test_worse_is_what_is_beyond_the_standard_error_in_log_loss_or_macro_f1() -> None:
    targets = torch.arange(400) % 2

    def of(right: Sequence[float]) -> torch.Tensor:
        return judged(right).scores.exp()

    best = of(drawn(1, 0.9))
    assert not ladder.worse(best, best, targets)
    assert ladder.worse(of(drawn(2, 0.8)), best, targets)
    assert not ladder.worse(of(drawn(3, 0.9)), best, targets)
    # Surer of what it has right, and of the same log loss: but a dozen more rows are wrong.
    more_wrong = [0.9] * 350 + [0.4] * 50
    few_wrong = [0.828] * 370 + [0.4] * 30
    assert ladder.worse(of(more_wrong), of(few_wrong), targets)
    # As many are right, and it is less sure of them.
    assert ladder.worse(of([0.8] * 360 + [0.1] * 40), of([0.9] * 360 + [0.1] * 40), targets)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=1, max_size=60))
def test_macro_f1_is_that_of_scikit_learn(rows: list[tuple[int, int]]) -> None:
    expected, predicted = (np.array(column) for column in zip(*rows, strict=True))
    found = ladder.macro_f1(expected, predicted)
    labels = sorted({*expected.tolist()})
    assert found == pytest.approx(f1_score(expected, predicted, labels=labels, average="macro", zero_division=0))


# --- few rows, many labels --------------------------------------------------------------------------


def climb_words(rows: Sequence[Example], **settings: Any) -> ladder.Outcome:
    lines: list[str] = []
    task = ladder.Task(
        rows,
        sorted({row.label for row in rows}),
        frozenset({"words"}),
        lambda: None,  # type: ignore[arg-type, return-value]
        lambda _: None,  # type: ignore[arg-type, return-value]
        **{"deadline": math.inf, "texts_after": 0, "checkpoints": None, "say": lines.append, **settings},
    )
    return ladder.climb(task)


WEATHER, FOOD = tiny_model.WORDS[:2]


@pytest.mark.parametrize(
    "rows",
    [
        [Example("snow", "cold"), Example("soup", "hot")],
        [Example("snow", "cold")] * 9 + [Example("soup", "hot")],
        [Example("snow", "cold"), Example("snow", "hot"), Example("soup", "hot")],
        [Example("☃", "cold"), Example("♨", "hot")],
        [Example("a", "cold"), Example("b", "hot"), Example("c", "hot")],
        [Example(word, "cold") for word in WEATHER] + [Example("soup", "hot")],
    ],
    ids=["two rows", "one text nine times", "one text, two labels", "symbols", "letters", "a label with one text"],
)
def test_the_smallest_data_is_learnt(rows: list[Example]) -> None:
    found = climb_words(rows).classifier.probabilities([row.text for row in rows])
    assert found.shape == (len(rows), 2)
    assert found.sum(dim=-1).tolist() == pytest.approx([1] * len(rows), abs=1e-5)


def test_hundreds_of_labels_with_two_texts_each_are_learnt_within_the_memory_for_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(words, "MAX_WEIGHTS", 200_000)
    rows = [Example(f"{WEATHER[at % 5]} number{at} {which}", f"label {at}") for at in range(300) for which in "ab"]
    outcome = climb_words(rows)
    assert len(outcome.classifier.labels) == 300
    [member] = outcome.classifier.members
    assert isinstance(member, inference.WordsMember)
    assert member.head.weight.shape == (666, 300)
    best = outcome.classifier.probabilities([row.text for row in rows]).argmax(dim=-1).tolist()
    right = sum(outcome.classifier.labels[at] == row.label for at, row in zip(best, rows, strict=True))
    assert right > 500
