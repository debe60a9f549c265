"""Intervals, comparisons of two models, blind reviews, and results for COCO's tools."""

import csv
import json
import random

import numpy as np
import pytest

from captioning import metrics
from captioning.__main__ import main
from captioning.errors import InputError
from captioning.evaluation import Evaluation
from captioning.extras.study.bootstrap import bootstrap, intervals
from captioning.extras.study.coco import write_results
from captioning.extras.study.compare import compare, in_words

pytestmark = pytest.mark.usefixtures("without_meteor")
WORDS = ["a", "the", "dog", "man", "red", "shirt", "runs", "in", "on", "snow"]


def corpus(images=40, seed=0, right=0.5):
    """References of two captions, and captions of which a part is right."""
    rng = random.Random(seed)
    references = [[" ".join(rng.choices(WORDS, k=8)) for _ in range(2)] for _ in range(images)]
    wrong = random.Random(seed + 1)
    captions = [
        texts[0] if wrong.random() < right else " ".join(wrong.choices(WORDS, k=7))
        for texts in references
    ]
    return references, captions


def evaluation(references, captions, names=None):
    names = names or [f"{number}.jpg" for number in range(len(captions))]
    sums, scores = (f(references, captions) for f in (metrics.statistics, metrics.score))
    return Evaluation(None, None, "dev", names, captions, references, scores, sums, {}, "", {})


def test_the_bootstrap_scores_resamples_of_the_images():
    references, captions = corpus()
    sums = metrics.statistics(references, captions)
    drawn = bootstrap(sums, seed=3)
    rng = np.random.default_rng(3)
    places = rng.integers(40, size=(100, 40))  # of the first hundred draws
    for draw in (0, 57, 99):
        some = [references[i] for i in places[draw]], [captions[i] for i in places[draw]]
        expected = metrics.score(*some)
        for name in ("BLEU-1", "BLEU-4", "ROUGE-L"):
            assert drawn[name][draw] == pytest.approx(expected[name])
        cider_d = 100 * sums[places[draw], -1].mean()  # rarities are those of the split
        assert drawn["CIDEr-D"][draw] == pytest.approx(cider_d)
    assert all(len(values) == 10_000 for values in drawn.values())


def test_an_interval_is_that_of_the_normal_distribution_for_a_mean():
    references, captions = corpus(images=400)
    sums = metrics.statistics(references, captions)
    low, high = intervals(sums)["ROUGE-L"]
    values = 100 * sums[:, -2]
    error = 1.96 * values.std() / np.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.3)


def test_a_better_model_is_told_from_chance_and_a_model_equals_itself():
    references, good = corpus(right=0.9)
    _, bad = corpus(right=0.2)
    found = compare(evaluation(references, good), evaluation(references, bad))
    for name, score in found.scores[0].items():
        difference = score - found.scores[1][name]
        assert found.drawn[name].mean() == pytest.approx(difference, abs=0.05 * score)
        assert found.p_value(name) < 0.001
        assert "more than chance" in found.in_words(name)
    assert found.gains.mean() == pytest.approx(
        found.scores[0]["CIDEr-D"] - found.scores[1]["CIDEr-D"]
    )
    same = compare(evaluation(references, good), evaluation(references, good))
    assert same.in_words("BLEU-4").startswith("+0.0 (95 %: +0.0 to +0.0), may be chance")
    assert {same.p_value(name) for name in same.drawn} == {1.0}
    assert "about 24 times in 100 (p = 0.24)" in in_words(0.24)
    assert "about 0.02 times in 100 (p = 0.0002)" in in_words(0.0002)


def test_models_are_compared_on_the_images_that_both_were_scored_on():
    references, captions = corpus(images=6)
    names = [f"{number}.jpg" for number in range(6)]
    first = evaluation(references[:4], captions[:4], names[:4])
    second = evaluation(references[2:], captions[2:], names[2:])
    found = compare(first, second)
    assert found.images == ["2.jpg", "3.jpg"]
    assert found.scores[0] == found.scores[1] == metrics.score(references[2:4], captions[2:4])


@pytest.fixture(scope="module")
def models(tiny_checkpoint, tiny_grid_checkpoint, tiny_prepared):
    """Arguments that name two models and their data."""
    split = ["--split", "train", "--data", str(tiny_prepared), "--beam-width", "1"]
    return [str(tiny_checkpoint), str(tiny_grid_checkpoint), *split]


def test_two_checkpoints_are_compared(models, tmp_path, capsys):
    page = tmp_path / "page.html"
    main(["compare", *models, "--report", str(page)])
    out = capsys.readouterr().out
    assert out.startswith(f"A: {models[0]}\nB: {models[1]}\n8 images of the train split\n")
    assert "between equals, chance makes one as large" in out
    assert "where B gains most" in out
    text = page.read_text()
    assert "CIDEr-D, A - B" in text
    assert text.count("data-other=") == 8


def test_a_split_is_scored_with_intervals_and_results(script, models, tmp_path):
    results = tmp_path / "results.json"
    model, _, *rest = models
    arguments = ["test.py", "--model", model, *rest, "--coco-results", results]
    status, out, err = script(*arguments, "--json")
    scores = json.loads(out)
    assert status == 0
    assert set(scores["intervals"]) == {f"BLEU-{n}" for n in (1, 2, 3, 4)} | {"ROUGE-L", "CIDEr-D"}
    for name, (low, high) in scores["intervals"].items():
        assert 0 <= low <= scores[name] <= high
    assert "95 % interval" in script(*arguments)[1]
    assert f"wrote {results}; image_id: file names" in err
    found = json.loads(results.read_text())
    assert [line["image_id"] for line in found] == [f"train{n}.jpg" for n in range(8)]


def test_image_ids_are_the_numbers_of_coco(tmp_path):
    path = tmp_path / "results.json"
    write_results(path, ["val/COCO_val2014_000000391895.jpg", "000000000042.jpg"], ["a", "b"])
    expected = [{"image_id": 391895, "caption": "a"}, {"image_id": 42, "caption": "b"}]
    assert json.loads(path.read_text()) == expected


def fill(sheet, answer, delimiter=","):
    """Answer each row of a sheet; None leaves the row out."""
    rows = list(csv.DictReader(sheet.read_text(encoding="utf-8-sig").splitlines()))
    with sheet.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
        writer.writeheader()
        for place, row in enumerate(rows):
            if (said := answer(place, row)) is not None:
                writer.writerow({**row, "better": said})


def test_a_blind_review_is_written_and_counted(models, tmp_path, capsys):
    sheet, key = tmp_path / "sheet.csv", tmp_path / "sheet-key.csv"
    main(["review", *models, "--sheet", str(sheet), "--n", "6"])
    names = {row["image"]: row for row in csv.DictReader(key.read_text("utf-8-sig").splitlines())}
    rows = list(csv.DictReader(sheet.read_text("utf-8-sig").splitlines()))
    assert len(rows) == len(names) <= 6
    assert models[0] not in sheet.read_text()
    with pytest.raises(InputError, match="exists; choose another name"):
        main(["review", *models, "--sheet", str(sheet)])
    with pytest.raises(InputError, match=f"{len(rows)} of {len(rows)} rows are missing or not"):
        main(["review", "--sheet", str(sheet)])
    fill(sheet, lambda n, row: "AB"[names[row["image"]]["B"] == models[0]] if n else " = ", ";")
    capsys.readouterr()
    main(["review", "--sheet", str(sheet)])
    out = capsys.readouterr().out
    assert f"{len(rows) - 1} wins  {models[0]}\n" in out
    assert f"0 wins  {models[1]}\n" in out
    assert "1 ties\n" in out
    assert f"(p = {2 * 0.5 ** (len(rows) - 1):.2g})" in out
    fill(sheet, lambda n, row: None)
    with pytest.raises(InputError, match="columns image, A, B, better"):
        main(["review", "--sheet", str(sheet)])
