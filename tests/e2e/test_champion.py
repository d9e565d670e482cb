"""The comparison with the live model: real training runs, one after the other.

Most of them are of words alone, which is enough for what is compared, and takes a tenth of a second.
"""

import csv
import io
import json
import random
import re
import shutil
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import champion
import inference
import tiny_model
import train
from dataset import Example, read_csv

# Two threads that wait for each other are slower than one at this size, far slower on a busy machine.
torch.set_num_threads(1)

WORDS = dict(zip(("rainy", "tasty", "moving"), tiny_model.WORDS, strict=False))
FAST = ["--epochs", "2", "--learning_rate", "5e-3", "--batch_size", "16", "--max_length", "16"]
JOB = "training-job-20261123-120000-0123abcd"


def make_rows(*labels, per_label=120, start=0):
    """Rows that can be learnt, no text twice: each label has words of its own."""
    return [
        (" ".join(random.Random(f"{label} {at}").choices(WORDS[label], k=5)) + f" {at}", label)
        for label in labels or ("rainy", "tasty")
        for at in range(start, start + per_label)
    ]


def relabelled(rows, share):
    """A share of the rows with the other label."""
    chance, other = random.Random(5), {"rainy": "tasty", "tasty": "rainy"}
    return [(text, other[label] if chance.random() < share else label) for text, label in rows]


@dataclass(frozen=True)
class Run:
    """A training run that ended well: the folder of its channels and what it wrote."""

    folder: Path

    @property
    def metrics(self):
        return json.loads((self.folder / "output" / "metrics.json").read_text())

    @property
    def champion(self):
        return self.metrics["champion"]

    @property
    def holdout(self):
        return read_csv(self.folder / "model" / "holdout.csv")

    @property
    def golden(self):
        return json.loads((self.folder / "output" / "golden.json").read_text())

    def sets(self):
        return {judged["name"]: judged for judged in self.champion["sets"]}


def write_rows(folder, rows):
    folder.mkdir()
    with (folder / "data.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])


def pack(model_dir, path):
    with tarfile.open(path, "w:gz") as archive:
        for file in sorted(model_dir.iterdir()):
            archive.add(file, file.name)


@pytest.fixture(scope="module")
def base_model(tmp_path_factory):
    return tiny_model.build_tiny_model(tmp_path_factory.mktemp("base_model"))


@pytest.fixture(scope="module")
def fit(tmp_path_factory, base_model):
    """Train on rows, with a live model (another run, or bytes for its archive) or without one."""

    def fit(rows, live=None, live_data=True, fails=False, arguments=(), candidates="words"):
        folder = tmp_path_factory.mktemp("run")
        write_rows(folder / "train", rows)
        environment = {
            "SM_CHANNEL_TRAIN": str(folder / "train"),
            "SM_MODEL_DIR": str(folder / "model"),
            "SM_OUTPUT_DATA_DIR": str(folder / "output"),
            "SM_OUTPUT_DIR": str(folder),
            "BASE_MODEL": str(base_model),
            "TEXT_COLUMN": "text",
            "LABEL_COLUMN": "label",
            "CANDIDATES": candidates,
        }
        if live is not None:
            (folder / "champion").mkdir()
            environment |= {"SM_CHANNEL_CHAMPION": str(folder / "champion"), "CHAMPION_JOB": JOB}
            if isinstance(live, bytes):
                (folder / "champion" / "model.tar.gz").write_bytes(live)
            else:
                pack(live.folder / "model", folder / "champion" / "model.tar.gz")
                if live_data:
                    environment["SM_CHANNEL_CHAMPION_DATA"] = str(live.folder / "train")
        failure = folder / "failure"
        exit_code = train.main([*FAST, *arguments], environment)
        if fails:
            assert exit_code == 1
            return failure.read_text()
        assert exit_code == 0, failure.read_text()
        return Run(folder)

    return fit


@pytest.fixture(scope="module")
def first(fit):
    return fit(make_rows())


@pytest.fixture(scope="module")
def encoder(fit):
    """A model with an encoder, on the same rows."""
    return fit(make_rows(), candidates="frozen")


# ---- the first model, and the same data again


def test_the_first_model_has_no_live_one_beside_it_and_carries_its_holdout(first):
    assert first.champion is None
    texts = dict(make_rows())
    assert len(first.holdout) == first.metrics["holdout_examples"] == 48
    assert all(texts[example.text] == example.label for example in first.holdout)


def test_the_same_data_again_is_compared_on_the_same_rows_and_close(fit, first):
    again = fit(make_rows(), live=first)
    assert again.champion["job"] == JOB
    assert (again.champion["status"], again.champion["compared"]) == ("compared", True)
    assert again.champion["note"] == ""
    assert {name: judged["rows"] for name, judged in again.sets().items()} == {
        "new hold-out": 48,
        "hold-out of the live model": 48,
    }
    assert again.champion["kept"] == 1
    for judged in again.sets().values():
        assert set(judged["error"].values()) == {0}
        assert list(judged["live"]) == ["accuracy", "macro_f1", "macro_precision", "macro_recall", "eval_loss"]
        assert judged["new"] == pytest.approx(judged["live"], abs=1e-6)
    assert again.sets()["new hold-out"]["new"]["accuracy"] == again.metrics["accuracy"]
    assert sorted(again.holdout) == sorted(first.holdout)


def test_another_seed_does_not_train_on_what_the_live_model_was_judged_on(fit, first):
    other = fit(make_rows(), live=first, arguments=["--seed", "7"])
    assert other.metrics["holdout_examples"] == 48
    assert sorted(other.holdout) == sorted(first.holdout)


# ---- worse data


def test_partly_relabelled_data_is_worse_on_the_live_models_holdout(fit, first):
    worse = fit(relabelled(make_rows(), 0.8), live=first)
    judged = worse.sets()["hold-out of the live model"]
    assert judged["live"]["macro_f1"] > 0.95
    assert judged["new"]["macro_f1"] < 0.5
    assert judged["new"]["eval_loss"] > judged["live"]["eval_loss"] + 0.1
    assert worse.champion["kept"] < 0.3


def test_relabelling_does_not_rewrite_what_models_are_judged_on(fit, first):
    worse = fit(relabelled(make_rows(), 0.8), live=first)
    assert set(first.holdout) <= set(worse.holdout)


def test_smaller_data_is_judged_on_the_live_models_whole_holdout(fit, first):
    smaller = fit(make_rows(per_label=20), live=first)
    assert set(smaller.sets()) == {"hold-out of the live model"}
    assert smaller.sets()["hold-out of the live model"]["rows"] == 48
    assert "Not compared on the new hold-out: it has" in smaller.champion["note"]


def test_other_rows_are_compared_on_both_holdouts_and_both_are_carried_on(fit, first):
    other = fit(make_rows(start=1000), live=first)
    assert {name: judged["rows"] for name, judged in other.sets().items()} == {
        "new hold-out": 48,
        "hold-out of the live model": 48,
    }
    assert set(first.holdout) < set(other.holdout)
    assert len(other.holdout) == 96
    assert other.champion["kept"] == 0


def test_data_that_has_the_live_models_in_it_is_more_of_the_same(fit, first):
    more = fit(make_rows() + make_rows(start=1000), live=first)
    assert more.champion["kept"] == 1
    assert fit(make_rows(per_label=60) + make_rows(start=1000), live=first).champion["kept"] == pytest.approx(
        0.5, abs=0.1
    )


def test_rows_that_the_live_model_was_trained_on_are_not_counted_for_it(fit, tmp_path, first):
    # Another model's hold-out in its archive, so that the upload's hold-out is what it was trained on.
    shutil.copytree(first.folder, tmp_path / "live")
    carried = "".join(f'"{text}","{label}"\r\n' for text, label in make_rows(per_label=15, start=5000))
    (tmp_path / "live" / "model" / "holdout.csv").write_text('"text","label"\r\n' + carried)
    again = fit(make_rows(), live=Run(tmp_path / "live"))
    assert set(again.sets()) == {"hold-out of the live model"}
    assert "Not compared on the new hold-out: it has 0 rows" in again.champion["note"]


def test_a_live_model_whose_data_is_gone_is_compared_on_its_own_holdout_alone(fit, first):
    run = fit(make_rows(start=1000), live=first, live_data=False)
    assert set(run.sets()) == {"hold-out of the live model"}
    assert "The rows that the live model was trained on are gone" in run.champion["note"]


def test_data_of_nothing_but_held_out_rows_is_refused_in_words(fit, first):
    reason = fit([*first.holdout], live=first, fails=True)
    assert "No row with the label 'rainy' is left to train on: its 24 texts all belong to the hold-out" in reason


# ---- labels


def test_a_label_that_came_is_left_out_of_the_comparison_and_carried_on(fit, first):
    more = fit(make_rows("rainy", "tasty", "moving"), live=first)
    assert more.champion["compared"] is True
    assert "New labels: 'moving'. The live model does not know them" in more.champion["note"]
    assert more.sets()["new hold-out"]["rows"] == 48
    assert more.metrics["holdout_examples"] == 72
    assert more.sets()["new hold-out"]["live"]["accuracy"] > 0.95
    assert Counter(example.label for example in more.holdout) == {"rainy": 24, "tasty": 24, "moving": 24}


def test_a_label_that_went_counts_as_errors_of_the_new_model_and_is_named(fit):
    three = fit(make_rows("rainy", "tasty", "moving"))
    two = fit(make_rows("rainy", "tasty"), live=three)
    judged = two.sets()["hold-out of the live model"]
    assert judged["rows"] == 72
    assert judged["live"]["accuracy"] > 0.95
    assert judged["new"]["accuracy"] <= 2 / 3
    assert judged["new"]["eval_loss"] > judged["live"]["eval_loss"] + 4
    assert "Labels that the new model does not know: 'moving'." in two.champion["note"]
    assert "give the data another model name" in two.champion["note"]
    assert "moving" not in {example.label for example in two.holdout}


def test_entirely_other_labels_are_a_new_task(fit, first):
    other = fit([(text, f"is {label}") for text, label in make_rows()], live=first)
    assert (other.champion["status"], other.champion["compared"]) == ("no shared label", False)
    assert other.champion["sets"] == []
    assert "none of these labels, only 'rainy', 'tasty': this is a new task" in other.champion["note"]
    assert {example.label for example in other.holdout} == {"is rainy", "is tasty"}


@pytest.mark.parametrize(
    ("live", "new", "respelt"),
    [
        (["ham", "spam"], ["Ham", "spam"], {"Ham": "ham"}),
        (["0", "1"], ["0.0", "1,00", "+1"], {"0.0": "0", "1,00": "1", "+1": "1"}),
        (["café"], ["cafe\u0301", "“Café”"], {"cafe\u0301": "café", "“Café”": "café"}),
        (["ham"], ["ham", "HAM"], {"HAM": "ham"}),
        (["ham", "Ham"], ["HAM", "Ham"], {}),
        (["1", "1.0", "2"], ["01", "2.0"], {"2.0": "2"}),
        (["ham"], ["spam"], {}),
    ],
)
def test_a_label_in_another_spelling_is_the_live_models_where_it_can_be_only_one(live, new, respelt):
    assert champion.respelt_labels(live, new) == respelt


def test_no_label_above_40_characters_is_shown_in_words_about_spelling():
    long = "a label of more than forty characters, which may be a text"
    text = champion.respelt_text({long.upper(): long, "A": "a"} | {f"{at}.0": f"{at}" for at in range(9)})
    assert text == (
        '(a label of 58 characters) for (a label of 58 characters), "A" for "a", "0.0" for "0", "1.0" for "1", '
        '"2.0" for "2" and 6 more'
    )


def test_the_words_about_spelling_are_no_longer_than_the_evaluator_takes():
    text = champion.respelt_text({"\x01" * 39 + f"{at}.0": "\x01" * 39 + f"{at}" for at in range(9)})
    assert len(text) == 1000


def test_answers_in_several_spellings_of_a_label_count_as_one(first):
    model = inference.model_fn(first.folder / "model")
    rows = [Example("rain cloud storm", "weather"), Example("soup rice bread", "weather")]
    answers = champion.answer(model, rows, {"rainy": "weather", "tasty": "weather"})
    assert answers == [("weather", pytest.approx(0, abs=1e-6))] * 2


def test_a_model_that_answers_with_no_number_is_said_to(first):
    model = inference.model_fn(first.folder / "model")
    model.members[0].head.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="it answers nan for a text"):
        champion.answer(model, [Example("rain", "rainy")])


# ---- a live model that is broken


def archive_of(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


CONFIG = b'{"id2label": {"0": "rainy", "1": "tasty"}, "model_type": "bert"}'


@pytest.mark.parametrize(
    ("archive", "reason"),
    [
        (b"no archive", "cannot be read \\(ReadError"),
        (archive_of({"a.txt": b"x"}), "cannot be read \\(FileNotFoundError"),
        (archive_of({"config.json": CONFIG})[:-30], "cannot be read"),
        (archive_of({"config.json": b"{}"}), "cannot be read \\(KeyError"),
        (archive_of({"config.json": b"[]"}), "cannot be read \\(TypeError"),
        (archive_of({"config.json": CONFIG, "holdout.csv": b"a,b\n"}), "cannot be read \\(DataError"),
        (archive_of({"model.json": b"{}"}), "cannot be read \\(KeyError"),
        (archive_of({"model.json": b'{"labels": 3}'}), "cannot be read \\(TypeError"),
        (archive_of({"model.json": b'{"labels": [1, null]}'}), "cannot be read \\(TypeError"),
    ],
    ids=[
        "no archive",
        "another archive",
        "cut off",
        "no labels",
        "a list",
        "another hold-out",
        "nothing in model.json",
        "no list of labels",
        "labels that are no text",
    ],
)
def test_a_live_model_that_cannot_be_read_is_not_compared_with_and_said(fit, archive, reason):
    run = fit(make_rows(per_label=40), live=archive)
    assert (run.champion["status"], run.champion["compared"]) == ("cannot be read", False)
    assert run.champion["sets"] == []
    assert re.search(reason, run.champion["note"])


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", b"broken"),
        ("encoder.safetensors", b"broken"),
        ("encoder.safetensors", None),
        ("model.json", b'{"format": 3, "labels": ["rainy", "tasty"], "members": []}'),
        ("model.json", b'{"labels": ["rainy", "tasty"]}'),
        ("model.json", b'{"format": 2, "labels": ["rainy", "tasty"], "members": [{"kind": "pickle"}]}'),
    ],
)
def test_a_live_model_that_does_not_load_is_not_compared_with_but_its_holdout_stays_untouched(
    fit, tmp_path, encoder, file, content
):
    shutil.copytree(encoder.folder, tmp_path / "live")
    broken = tmp_path / "live" / "model" / file
    if content is None:
        broken.unlink()
    else:
        broken.write_bytes(content)
    run = fit(make_rows(start=1000), live=Run(tmp_path / "live"))
    assert (run.champion["status"], run.champion["compared"]) == ("cannot be loaded", False)
    assert "The live model cannot be loaded" in run.champion["note"]
    assert set(encoder.holdout) < set(run.holdout)


def test_too_few_rows_to_compare_on_are_said(fit):
    run = fit(make_rows(per_label=40), live=fit(make_rows(per_label=40)))
    assert (run.champion["status"], run.champion["compared"]) == ("too few rows", False)


# ---- a live model that is hostile


def unpacked(tmp_path, *members):
    """What is unpacked of an archive of these members: (name, content) or a TarInfo."""
    with tarfile.open(tmp_path / "model.tar.gz", "w:gz") as archive:
        for member in members:
            if isinstance(member, tuple):
                name, content = member
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            else:
                archive.addfile(member)
    champion.unpack(tmp_path / "model.tar.gz", tmp_path / "in" / "folder")
    return sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.name != "model.tar.gz")


def test_only_data_at_the_root_of_a_live_models_archive_is_unpacked(tmp_path):
    wanted = ("config.json", "./tokenizer.json", "model-00001-of-00002.safetensors", "vocab.txt", "holdout.csv")
    others = ("code/inference.py", "modeling.py", "pytorch_model.bin", "../../escaped.json", "/tmp/x.json", "a/b.json")
    names = unpacked(tmp_path, *((name, b"x") for name in (*wanted, *others, ".json", "..json", "a\n.json")))
    assert names == ["in", "in/folder", *sorted(f"in/folder/{name.removeprefix('./')}" for name in wanted)]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE])
def test_what_is_no_regular_file_is_not_unpacked(tmp_path, kind):
    member = tarfile.TarInfo("config.json")
    member.type, member.linkname = kind, "/etc/passwd"
    assert unpacked(tmp_path, member, ("vocab.txt", b"x")) == ["in", "in/folder", "in/folder/vocab.txt"]


def test_an_archive_of_many_members_is_refused(tmp_path):
    with pytest.raises(ValueError, match="more than 1000 members"):
        unpacked(tmp_path, *((f"{at}.bin", b"") for at in range(1001)))


@pytest.mark.parametrize("name", ["model.safetensors", "weights.bin"])
def test_an_archive_that_unpacks_to_too_much_is_refused_before_that_is_unpacked(tmp_path, monkeypatch, name):
    monkeypatch.setattr(champion, "ARCHIVE_MAX_BYTES", 10_000)
    with pytest.raises(ValueError, match="more than 1000 members or 10000 bytes"):
        unpacked(tmp_path, ("config.json", b"{}"), (name, bytes(10_000)))
    assert [path.name for path in (tmp_path / "in" / "folder").iterdir()] == ["config.json"]


def test_the_code_of_a_live_model_is_not_run(fit, tmp_path, encoder):
    shutil.copytree(encoder.folder, tmp_path / "live")
    model, ran = tmp_path / "live" / "model", tmp_path / "ran"
    for code in (model / "modeling.py", model / "code" / "inference.py"):
        code.write_text(f"open({str(ran)!r}, 'w')\n")
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "modeling.X", "AutoModel": "modeling.X"}
    (model / "config.json").write_text(json.dumps(config))
    assert fit(make_rows(), live=Run(tmp_path / "live")).champion["status"] == "compared"
    assert not ran.exists()


def test_weights_that_are_a_pickle_are_not_loaded(fit, tmp_path, encoder):
    shutil.copytree(encoder.folder, tmp_path / "live")
    model = tmp_path / "live" / "model"
    torch.save({}, model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        inference.model_fn(model)
    assert fit(make_rows(), live=Run(tmp_path / "live")).champion["status"] == "cannot be loaded"


@pytest.mark.parametrize("name", ["CHAMPION_JOB", "SM_CHANNEL_CHAMPION"])
def test_a_live_model_without_its_name_or_its_archive_is_a_mistake_that_is_named(tmp_path, name):
    environment = {
        "SM_CHANNEL_TRAIN": str(tmp_path),
        "SM_MODEL_DIR": str(tmp_path / "model"),
        "SM_OUTPUT_DATA_DIR": str(tmp_path / "output"),
        "BASE_MODEL": "org/name",
        "TEXT_COLUMN": "text",
        "LABEL_COLUMN": "label",
        name: "x",
    }
    with pytest.raises(train.TrainingError, match=r"CHAMPION_JOB=.* belong together"):
        train.Settings.read([], environment)


# ---- how sure a difference is


def answers(labels):
    return [champion.Answer(label, 0.1 if label == "a" else 1.0) for label in labels]


def test_the_standard_error_is_that_of_paired_rows():
    rows = [Example(str(at), "a") for at in range(400)]
    live = answers("a" * 400)
    new = answers("b" * 20 + "a" * 380)
    errors = champion.standard_errors(rows, live, new)
    assert errors["accuracy"] == pytest.approx((0.05 * 0.95 / 400) ** 0.5, rel=0.2)
    assert errors["eval_loss"] == pytest.approx(0.9 * errors["accuracy"])
    assert set(champion.standard_errors(rows, new, new).values()) == {0}
    assert champion.standard_errors(rows, live, new) == errors


def test_the_standard_errors_are_those_of_the_figures():
    chance = random.Random(4)
    rows = [Example(str(at), chance.choice("abcd")) for at in range(50)]
    drawn = [champion.Answer(chance.choice("abcdx"), chance.random()) for _ in rows]
    at = {label: index for index, label in enumerate("abcdx")}
    expected, predicted = ([at[one.label] for one in of] for of in (rows, drawn))
    losses = [answer.loss for answer in drawn]
    found = champion._figures(*map(np.array, (expected, predicted, losses)))
    assert found == pytest.approx(champion.figures(rows, drawn))


# ---- what is carried on


def examples(label, count, start=0):
    return [Example(f"{label} {at}", label) for at in range(start, start + count)]


def test_what_is_carried_on_is_bounded_keeps_every_label_and_does_not_depend_on_the_order(monkeypatch):
    monkeypatch.setattr(champion, "HOLDOUT_MAX_ROWS", 100)
    live = champion.Champion(JOB, Path(), ("a", "b"), tuple(examples("a", 300) + examples("b", 1)))
    new = examples("a", 300, start=300) + examples("c", 2)
    carried = champion.carry_forward(live, new, ["a", "b", "c"])
    assert len(carried) == 100
    assert {example.label for example in carried} == {"a", "b", "c"}
    assert sorted(champion.carry_forward(live, new[::-1], ["c", "b", "a"])) == sorted(carried)


def test_the_label_of_the_live_models_holdout_counts_unless_the_new_model_does_not_know_it():
    live = champion.Champion(JOB, Path(), ("a", "b"), (Example("x", "a"), Example("y", "b")))
    new = [Example("x", "c"), Example("y", "c")]
    assert champion.carry_forward(live, new, ["a", "c"]) == [Example("x", "a"), Example("y", "c")]


@pytest.mark.parametrize(
    ("labels", "written"),
    [(["A", "c"], "A"), (["a", "A", "c"], "a"), ([" a", "A", "c"], " a"), (["A", " a", "c"], " a")],
)
def test_a_label_of_the_live_models_holdout_is_carried_on_in_the_new_spelling(labels, written):
    respelt = champion.respelt_labels(["a"], labels)
    live = champion.Champion(JOB, Path(), ("a",), (Example("x", "a"),), respelt)
    assert champion.carry_forward(live, [Example("x", "c")], labels) == [Example("x", written)]


# ---- golden rows


def test_golden_rows_are_the_saved_models_own_answers_to_twenty_holdout_texts_of_every_label(first):
    golden = first.golden
    assert golden == json.loads((first.folder / "model" / "golden.json").read_text())
    assert len(golden) == 20
    assert {row["text"] for row in golden} <= {example.text for example in first.holdout}
    assert Counter(dict(make_rows())[row["text"]] for row in golden) == {"rainy": 10, "tasty": 10}
    model = inference.model_fn(first.folder / "model")
    for row in golden:
        (answer,) = inference.predict_fn({"inputs": row["text"]}, model)
        assert answer["label"] == row["label"]
        assert answer["score"] == pytest.approx(row["score"], abs=1e-4)


def test_golden_rows_are_those_that_are_clearly_decided_where_there_are_any(first, monkeypatch):
    def predict(request, _):
        clear = [text in {f"rain {at}" for at in range(20)} for text in request["inputs"]]
        scores = [(0.9, 0.1) if one else (0.54, 0.46) for one in clear]
        best = [[{"label": label, "score": score} for label, score in zip("ab", two, strict=True)] for two in scores]
        return best if request.get("parameters") == {"top_k": 2} else [two[0] for two in best]

    monkeypatch.setattr(inference, "predict_fn", predict)
    golden = train.golden_rows(None, [Example(f"rain {at}", "rainy") for at in range(30)])
    assert {row["text"] for row in golden} == {f"rain {at}" for at in range(20)}
    assert {(row["label"], row["score"]) for row in golden} == {("a", 0.9)}


def test_texts_that_are_the_same_once_they_are_cut_are_one_golden_row(first):
    model = inference.model_fn(first.folder / "model")
    rows = [Example("rain " * 200 + str(at), "rainy") for at in range(30)] + [Example("soup", "tasty")]
    golden = train.golden_rows(model, rows)
    assert sorted(row["text"] for row in golden) == [("rain " * 200)[:512].strip(), "soup"]
