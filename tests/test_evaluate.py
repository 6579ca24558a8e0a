"""evaluate() and its numbers, against the same numbers computed by hand with NumPy, scipy and another formula."""

import html.parser
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

import effnet_np
from effnet_np.cli import main
from effnet_np.hf_config import imagenet_labels
from effnet_np.inference import metrics
from effnet_np.inference.evaluate import _Judge, evaluate
from effnet_np.inference.labelled import read_labelled
from effnet_np.weights import wordnet_ids

from helpers import CHELSEA, COFFEE, pair, tiny_config

scipy_stats = pytest.importorskip("scipy.stats", reason="scipy is what the numbers are compared with")


@pytest.fixture(scope="module")
def made():
    """Made predictions: logits of 400 pictures of 7 classes, right for some two thirds, too sure of themselves."""
    generator = np.random.default_rng(5)
    truth = generator.integers(0, 7, 400)
    logits = generator.standard_normal((400, 7)) * 3
    logits[np.arange(400), truth] += 3.5
    return logits.astype(np.float32), truth


# -- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("right", "total"), [(0, 1), (1, 1), (0, 20), (20, 20), (7, 10), (237, 240), (37_550, 50_000)])
def test_wilson_against_scipy(right, total):
    expected = scipy_stats.binomtest(right, total).proportion_ci(0.95, "wilson")
    np.testing.assert_allclose(metrics.wilson(right, total), expected, rtol=1e-12, atol=1e-15)


def test_wilson_of_nothing_says_nothing():
    assert metrics.wilson(0, 0) == (0.0, 1.0)
    assert str(metrics.Rate(0, 0)) == "no pictures"
    assert math.isnan(metrics.Rate(0, 0).value)


@pytest.mark.parametrize("counts", [(0, 0), (1, 0), (0, 5), (3, 12), (10, 10), (40, 62), (480, 520), (490, 531)])
def test_mcnemar_against_scipy(counts):
    one, other = counts
    if one + other <= metrics.EXACT:
        expected = scipy_stats.binomtest(one, one + other, 0.5).pvalue if one + other else 1.0
    else:
        expected = scipy_stats.chi2.sf((abs(one - other) - 1) ** 2 / (one + other), 1)
    assert metrics.mcnemar(one, other) == pytest.approx(expected, rel=1e-9, abs=0)
    assert metrics.mcnemar(other, one) == metrics.mcnemar(one, other)


def test_the_two_ways_of_mcnemar_meet():
    """At the border the approximation is within a few percent of what the exact count gives."""
    exact = metrics.mcnemar(460, 540)
    assert scipy_stats.chi2.sf(79**2 / 1000, 1) == pytest.approx(exact, rel=0.05)


def test_top_classes_like_classify_ranks_them():
    logits = np.array([[1, 3, 3, 2, 0], [0, 0, 0, 0, 0]], np.float32)
    np.testing.assert_array_equal(metrics.top_classes(logits, 3), [[1, 2, 3], [0, 1, 2]])


def test_probabilities_and_cross_entropy_against_scipy(made):
    from scipy.special import log_softmax, softmax

    logits, truth = made
    np.testing.assert_allclose(metrics.probabilities(logits), softmax(logits.astype(float), axis=1), rtol=1e-13)
    by_hand = -log_softmax(logits.astype(float) / 1.7, axis=1)[np.arange(400), truth].mean()
    assert metrics.cross_entropy(logits, truth, 1.7) == pytest.approx(by_hand, rel=1e-13)
    assert math.isfinite(metrics.cross_entropy(np.array([[1000.0, -1000.0]]), np.array([1])))


def test_confusions_and_classes_by_counting(made):
    logits, truth = made
    predicted = logits.argmax(axis=1)
    matrix = np.zeros((7, 7), int)
    for t, p in zip(truth, predicted, strict=True):
        matrix[t, p] += 1
    found = metrics.confusions(truth, predicted)
    assert {(a, b): n for a, b, n in found} == {
        (a, b): matrix[a, b] for a in range(7) for b in range(7) if a != b and matrix[a, b]
    }
    assert [row[2] for row in found] == sorted((row[2] for row in found), reverse=True)
    for row in metrics.per_class(truth, predicted):
        assert (row.recall.right, row.recall.total) == (matrix[row.index, row.index], matrix[row.index].sum())
        assert (row.precision.right, row.precision.total) == (matrix[row.index, row.index], matrix[:, row.index].sum())


def test_classes_that_do_not_occur_have_no_row():
    rows = metrics.per_class(np.array([4, 4]), np.array([4, 9]))
    assert [(row.index, row.recall.total, row.precision.total) for row in rows] == [(4, 2, 1), (9, 0, 1)]
    assert metrics.confusions(np.array([4, 4]), np.array([4, 4])) == []


def test_calibration_error_by_the_definition(made):
    """Summed picture by picture with scipy's bins, which are closed on the left: no confidence lies on an edge here."""
    logits, truth = made
    probabilities = metrics.probabilities(logits)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    edges = np.linspace(0, 1, 16)
    assert not np.isin(confidence, edges).any()
    mean = {
        name: scipy_stats.binned_statistic(confidence, values, "mean", edges)[0]
        for name, values in (("accuracy", right.astype(float)), ("confidence", confidence))
    }
    count = scipy_stats.binned_statistic(confidence, confidence, "count", edges)[0]
    rows = metrics.reliability(confidence, right)
    np.testing.assert_array_equal([row.count for row in rows], count)
    np.testing.assert_allclose([row.accuracy for row in rows], mean["accuracy"], rtol=1e-12)
    np.testing.assert_allclose([row.confidence for row in rows], mean["confidence"], rtol=1e-12)
    expected = np.nansum(count / 400 * np.abs(mean["accuracy"] - mean["confidence"]))
    assert metrics.calibration_error(rows) == pytest.approx(expected, rel=1e-12)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    rows = metrics.reliability(np.array([0.2, 1.0, 0.0]), np.array([True, True, False]), bins=5)
    assert [row.count for row in rows] == [2, 0, 0, 0, 1]


def test_temperature_against_scipys_minimiser(made):
    from scipy.optimize import minimize_scalar

    logits, truth = made
    found = minimize_scalar(
        lambda t: metrics.cross_entropy(logits, truth, t), bounds=(0.05, 20), method="bounded", options={"xatol": 1e-9}
    )
    fitted = metrics.fit_temperature(logits, truth)
    assert fitted == pytest.approx(found.x, rel=1e-4)
    assert metrics.cross_entropy(logits, truth, fitted) <= found.fun + 1e-12
    assert metrics.fit_temperature(logits * 2, truth) == pytest.approx(2 * fitted, rel=1e-9)


def test_temperature_of_what_is_always_right_is_the_end_of_the_range():
    logits = np.eye(3, dtype=np.float32)
    assert metrics.fit_temperature(logits, np.arange(3)) == pytest.approx(0.01, rel=1e-6)
    assert metrics.fit_temperature(logits, (np.arange(3) + 1) % 3) == pytest.approx(100, rel=1e-6)


def test_no_picture_judges_the_temperature_that_it_helped_to_fit(made):
    logits, truth = made
    right = logits.argmax(axis=1) == truth
    expected = np.empty(400)
    for mine, others in ((np.arange(0, 400, 2), np.arange(1, 400, 2)), (np.arange(1, 400, 2), np.arange(0, 400, 2))):
        temperature = metrics.fit_temperature(logits[others], truth[others])
        expected[mine] = metrics.probabilities(logits[mine], temperature).max(axis=1)
    assert metrics.cross_fitted(logits, truth, right) == metrics.reliability(expected, right)
    before = metrics.calibration_error(metrics.reliability(metrics.probabilities(logits).max(axis=1), right))
    assert metrics.calibration_error(metrics.cross_fitted(logits, truth, right)) < before / 2


# -- names of classes -------------------------------------------------------------------------------------------------


def test_wordnet_ids_are_imagenets_in_class_order():
    ids = wordnet_ids()
    assert len(set(ids)) == 1000
    assert ids == sorted(ids)
    known = {
        "n01440764": "tench",
        "n02123045": "tabby",
        "n02123159": "tiger cat",
        "n07920052": "espresso",
        "n15075141": "toilet tissue",
    }
    assert {name: imagenet_labels()[ids.index(name)].split(",")[0] for name in known} == known


@pytest.fixture(scope="module")
def flowers():
    """A tiny model with names of its own, and its processor."""
    labels = {0: "rose", 1: "2", 2: "Lily, white lily", 3: "Ox eye", 4: "tulip"}
    _, model = pair(tiny_config(id2label=labels, num_labels=5), seed=1)
    model.image_processor = effnet_np.EfficientNetImageProcessor(size={"height": 64, "width": 64})
    return model


def folder_of(tmp_path, classes):
    for number, name in enumerate(classes):
        (tmp_path / name).mkdir(parents=True)
        shutil.copy(CHELSEA if number % 2 else COFFEE, tmp_path / name / f"{number}.png")
    return tmp_path


@pytest.mark.parametrize(
    ("names", "naming", "truth"),
    [
        (["rose", "2", "tulip"], "label", [1, 0, 4]),  # a label that is a number is that label
        (["ROSE", "white_lily", "ox_eye"], "label", [0, 3, 2]),
        (["0", "3", "4"], "index", [0, 3, 4]),
    ],
)
def test_how_folders_are_named(flowers, tmp_path, names, naming, truth):
    found = read_labelled(folder_of(tmp_path, names), flowers.config)
    assert found.naming == naming
    assert {Path(path).parent.name: index for path, index in zip(found.paths, found.truth, strict=True)} == dict(
        zip(sorted(names), truth, strict=True)
    )


def test_labels_that_are_numbers_are_labels(tmp_path):
    """Digits, whose folders sort as texts: "10" is class 2."""
    config = tiny_config(id2label=dict(enumerate(["0", "1", "10", "2", "3"])))
    found = read_labelled(folder_of(tmp_path, ["1", "10", "2"]), config)
    assert (found.naming, found.truth) == ("label", [1, 2, 3])


def test_imagenets_folders(tmp_path):
    config = effnet_np.EfficientNetConfig.preset("b0", id2label=imagenet_labels())
    found = read_labelled(folder_of(tmp_path, ["n02123159", "n07920052"]), config)
    assert (found.naming, found.truth) == ("WordNet id", [282, 967])


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["rose", "n02123159"], "'n02123159' is no class of this model, taken by label"),
        (["5"], "'5' is no class"),
        (["tulips", "rose"], "close to it: 4 tulip"),
        (["train", "val"], "give .*val, if those are the pictures"),
        (["a", "b", "c", "d", "e", "f", "g"], "'a', 'b', 'c', 'd', 'e' and 2 more are no classes"),
        (["x\x1b[2J"], r"x\\x1b\[2J"),
    ],
)
def test_folders_that_name_no_class_are_named(flowers, tmp_path, names, words):
    with pytest.raises(ValueError, match=words):
        read_labelled(folder_of(tmp_path, names), flowers.config)


def test_two_classes_of_one_name_need_their_index(tmp_path):
    """ImageNet has two cranes."""
    config = effnet_np.EfficientNetConfig.preset("b0", id2label=imagenet_labels())
    with pytest.raises(ValueError, match="2 classes are called 'crane'; give the index: 134 crane; 517 crane"):
        read_labelled(folder_of(tmp_path, ["crane", "goldfish"]), config)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.csv", 'file,label\n"a, b.png",rose\nb.png,"Lily, white lily"\n'),
        ("list.tsv", "a, b.png\trose\r\nb.png\twhite lily\r\n"),
        ("list.txt", "\ufeffimage\tclass\na, b.png\trose\n\nb.png\tlily\n"),
        ("spaces.txt", "a.png 0\n  b.png   2\n"),
    ],
)
def test_lists(flowers, tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    found = read_labelled(tmp_path / name, flowers.config)
    assert found.truth == [0, 2]
    assert found.paths[1] == str(tmp_path / "b.png")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a.png,rose,1\n", "line 1: expected a file and its label, got 3 fields"),
        ("a.png,rose\nb.png,\n", "line 2: expected"),
        ("", "holds no pictures"),
        ("x" * 200_000 + ",rose", "is no CSV file: field larger"),
    ],
)
def test_lists_that_are_none(flowers, tmp_path, text, words):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(ValueError, match=words):
        read_labelled(tmp_path / "list.csv", flowers.config)


def test_what_is_left_out_is_said(flowers, tmp_path):
    folder = folder_of(tmp_path, ["rose", "tulip"])
    (folder / "README.txt").touch()
    (folder / "rose" / "notes.txt").touch()
    (folder / "rose" / ".hidden.png").touch()
    (folder / ".cache").mkdir()
    found = read_labelled(folder, flowers.config)
    assert len(found.paths) == 2
    assert found.remarks == ["left out 1 beside the classes' folders", "left out 1 that are no pictures by their names"]


# -- on pictures ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """The notebooks' photographs in ImageNet's folders, one in a wrong one, and a damaged file."""
    folder = tmp_path_factory.mktemp("imagenet")
    for wnid, source in (("n02123159", CHELSEA), ("n07920052", COFFEE), ("n01440764", COFFEE), ("n02123045", CHELSEA)):
        (folder / wnid).mkdir()
        shutil.copy(source, folder / wnid / source.name)
    (folder / "n01440764" / "torn.png").write_bytes(CHELSEA.read_bytes()[:5000])
    return folder


@pytest.fixture(scope="module")
def real(photographs):
    return evaluate(photographs, calibrate=True, backend="numpy")


def test_real_predictions_against_classify_and_numpy(real, photographs):
    """Every number from what classify() says of each picture, by other code."""
    from scipy.special import log_softmax

    pictures = sorted(path for path in photographs.glob("*/*.png") if path.name != "torn.png")
    truth = [wordnet_ids().index(path.parent.name) for path in pictures]
    rows = effnet_np.classify(list(map(str, pictures)), top_k=None, backend="numpy", function_to_apply="none")
    logits = np.array([[p["score"] for p in sorted(row, key=lambda p: p["index"])] for row in rows])
    assert real.paths == list(map(str, pictures))
    assert real.truth.tolist() == truth
    np.testing.assert_array_equal(real.top[:, 0], logits.argmax(axis=1))
    assert (real.top1.right, real.top1.total) == (int((logits.argmax(axis=1) == truth).sum()), 4)
    fifth = np.sort(logits, axis=1)[:, -5]
    assert real.top5.right == int((logits[np.arange(4), truth] >= fifth).sum())
    logs = log_softmax(logits, axis=1)
    np.testing.assert_allclose(real.loss, -logs[np.arange(4), truth], rtol=1e-12)
    np.testing.assert_allclose(real.confidence, np.exp(logs).max(axis=1), rtol=1e-12)
    assert real.temperature == metrics.fit_temperature(logits, np.array(truth))


def test_made_predictions_by_hand(made):
    """All rates of an evaluation from logits, with other means: ranks by counting, probabilities by scipy."""
    from scipy.special import softmax

    logits, truth = made
    judge = _Judge(7, calibrate=True)
    for number in range(400):
        judge.take(str(number), int(truth[number]), logits[number])
    result = judge.result("made", "here", "index", {n: str(n) for n in range(7)}, 1.0, [])
    rank = (logits > logits[np.arange(400), truth][:, None]).sum(axis=1)
    assert (result.top1.right, result.top5.right, result.top1.total) == (int((rank == 0).sum()), int((rank < 5).sum()), 400)
    np.testing.assert_allclose(
        result.top1.interval, scipy_stats.binomtest(result.top1.right, 400).proportion_ci(method="wilson")
    )
    scores = softmax(logits.astype(float), axis=1)
    np.testing.assert_allclose(result.confidence, scores.max(axis=1), rtol=1e-12)
    assert result.cross_entropy == pytest.approx(-np.log(scores[np.arange(400), truth]).mean(), rel=1e-12)
    assert result.calibration_error == metrics.calibration_error(metrics.reliability(scores.max(axis=1), rank == 0))
    assert result.temperature == metrics.fit_temperature(logits, truth)


def test_what_is_expected_of_these_photographs(real):
    assert (real.top1.right, real.top5.right, real.top1.total) == (2, 3, 4)
    assert [(real.labels[a].split(",")[0], real.labels[b].split(",")[0], n) for a, b, n in real.confusions] == [
        ("tench", "espresso", 1),
        ("tabby", "tiger cat", 1),
    ]
    assert [Path(path).name for path, _ in real.failed] == ["torn.png"]
    assert "torn.png cannot be read as a picture" in real.failed[0][1]


def test_the_text(real):
    text = str(real)
    assert "top-1    50.0% (95% interval 15.0% to 85.0%)" in text
    assert "1 x tench, Tinca tinca -> espresso" in text
    assert "not judged" in text


def test_the_json_says_the_same(real, tmp_path):
    real.save(tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["top1"] == {"right": 2, "total": 4, "value": 0.5, "low": real.top1.interval[0], "high": real.top1.interval[1]}
    assert report["calibration"]["expected_calibration_error"] == real.calibration_error
    assert report["calibration"]["temperature"] == real.temperature
    assert sum(row["count"] for row in report["calibration"]["bins"]) == 4
    assert [row["predicted"] for row in report["mistakes"]] == ["espresso", "tiger cat"]
    assert len(report["classes"]) == 4
    assert report["classes_named_by"] == "WordNet id"


class Reader(html.parser.HTMLParser):
    """Tags opened and closed, addresses, and all text of a page."""

    VOID = ("meta", "img", "br")

    def __init__(self, page):
        super().__init__()
        self.open, self.addresses, self.tags, self.words = [], [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "xlink:href", "action")]
        assert not any(name.startswith("on") for name, _ in attributes)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def page_of(result, tmp_path):
    result.save(tmp_path / "report.html")
    reader = Reader((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert reader.open == []
    assert all(address.startswith("data:image/jpeg;base64,") for address in reader.addresses)
    return reader


def test_the_page_loads_nothing_from_elsewhere(real, tmp_path):
    page = page_of(real, tmp_path)
    assert page.tags.count("svg") >= 4
    assert page.tags.count("img") == 4  # two confusions, and the same two among the mistakes
    text = " ".join(page.words)
    assert "50.00%" in text
    assert f"ECE {real.calibration_error:.3f}" in text
    assert "tench, Tinca tinca" in text
    assert "torn.png" in text


def test_hostile_names_are_text(flowers, tmp_path):
    """Labels of a checkpoint and names of files that would be markup, on the page and on the terminal."""
    evil = '<script>alert(1)</script>"><img src=x onerror=alert(1)>\x1b[2J'
    config = flowers.config.to_dict() | {"id2label": {n: f"{evil}{n}" for n in range(5)}, "label2id": None}
    model = effnet_np.EfficientNetForImageClassification(effnet_np.EfficientNetConfig.from_dict(config), seed=1)
    model.image_processor = flowers.image_processor
    name = "</title><svg onload=alert(1)>&amp;'\".png"
    rows = []
    for number in range(5):
        (tmp_path / f"{number}{name.replace('/', '⁄')}").write_bytes(COFFEE.read_bytes())
        rows.append(f"{number}{name.replace('/', '⁄')}\t{number}")
    rows.append("<b>missing</b>.png\t0")
    (tmp_path / "<i>list.txt").write_text("\n".join(rows), encoding="utf-8")
    result = evaluate(tmp_path / "<i>list.txt", model)
    page = page_of(result, tmp_path)
    assert not {"script", "b", "i"} & set(page.tags) - {"b"}
    assert page.tags.count("b") == 2 * len(result.confusions)
    assert "\x1b" not in str(result)
    assert "\x1b" not in (tmp_path / "report.html").read_text(encoding="utf-8")
    json.loads(json.dumps(result.to_dict(), allow_nan=False))


# -- two models -------------------------------------------------------------------------------------------------------


def test_two_models_compared_by_counting(flowers, tmp_path):
    folder = tmp_path / "pictures"
    generator = np.random.default_rng(0)
    from PIL import Image

    for name in ("rose", "2", "tulip"):
        (folder / name).mkdir(parents=True)
        for number in range(8):
            Image.fromarray(generator.integers(0, 256, (40, 50, 3), np.uint8)).save(folder / name / f"{number}.png")
    _, other = pair(flowers.config, seed=9)
    other.image_processor = flowers.image_processor
    first, second = evaluate(folder, flowers), evaluate(folder, other)
    compared = first.against(second)
    one, two = first.top[:, 0] == first.truth, second.top[:, 0] == second.truth
    table = [[int((a & b).sum()) for b in (two, ~two)] for a in (one, ~one)]
    assert [[compared.both, compared.only_first], [compared.only_second, compared.neither]] == table
    counts = table[0][1], table[1][0]
    assert compared.p_value == pytest.approx(scipy_stats.binomtest(counts[0], sum(counts), 0.5).pvalue if sum(counts) else 1)
    assert len(compared.differing) == int((first.top[:, 0] != second.top[:, 0]).sum())
    compared.save(tmp_path / "both.json")
    report = json.loads((tmp_path / "both.json").read_text())
    assert report["compared"]["mcnemar_p"] == compared.p_value
    assert [run["top1"]["right"] for run in report["models"]] == [int(one.sum()), int(two.sum())]
    page = page_of(compared, tmp_path)
    assert "McNemar" in " ".join(page.words)


def test_evaluations_without_a_common_picture_are_not_compared(real, flowers, tmp_path):
    other = evaluate(folder_of(tmp_path, ["rose", "tulip"]), flowers)
    with pytest.raises(ValueError, match="no picture in common"):
        real.against(other)


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_refusals(flowers, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder or list"):
        evaluate(tmp_path / "nowhere")
    (tmp_path / "rose").mkdir()
    with pytest.raises(ValueError, match=r"holds no pictures \(.jpg"):
        evaluate(tmp_path, flowers)
    (tmp_path / "rose" / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="none of the 1 pictures could be judged; the first: .*a.png is no picture"):
        evaluate(tmp_path, flowers)
    shutil.copy(COFFEE, tmp_path / "rose" / "b.png")
    with pytest.raises(ValueError, match="at least two pictures"):
        evaluate(tmp_path, flowers, calibrate=True)
    result = evaluate(tmp_path, flowers)
    with pytest.raises(ValueError, match=r"must end in .json, .html or .txt, got report.pdf"):
        result.save(tmp_path / "report.pdf")
    assert result.top5 is None


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command(photographs, tmp_path, capsys):
    report = tmp_path / "report.html"
    assert main(["evaluate", str(photographs), "--backend", "numpy", "--calibrate", "-o", str(report)]) == 1  # torn.png
    said = capsys.readouterr()
    assert "top-1    50.0%" in said.out
    assert "temperature" in said.out
    assert said.err.count("\n") == 2
    assert "1 could not be judged" in said.err
    assert report.read_text().startswith("<!DOCTYPE html>")


def test_two_backends_as_json(photographs, capsys):
    """The kernels and NumPy: the same answers, and the report says which is which."""
    assert main(["evaluate", str(photographs), "--backend", "numpy", "--backend", "numba", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert [run["model"] for run in report["models"]] == ["lite0 (numpy)", "lite0 (numba)"]
    assert (report["compared"]["both"], report["compared"]["neither"]) == (2, 2)
    assert report["compared"]["mcnemar_p"] == 1
    one, other = (run["cross_entropy"] for run in report["models"])
    assert one == pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "a", "--model", "b", "--model", "c"], "two are compared, no more"),
        (["-o", "report.pdf"], "must end in .json, .html or .txt, got report.pdf"),
    ],
)
def test_wrong_calls(photographs, arguments, words, capsys):
    assert main(["evaluate", str(photographs), *arguments]) == 1
    assert words in capsys.readouterr().err


def test_a_list_and_a_model_of_ones_own(flowers, tmp_path, capsys):
    """As a fine-tuned model has them: its own names, from its folder."""
    flowers.save_pretrained(tmp_path / "model")
    flowers.image_processor.save_pretrained(tmp_path / "model")
    (tmp_path / "a.png").write_bytes(CHELSEA.read_bytes())
    (tmp_path / "b.png").write_bytes(COFFEE.read_bytes())
    answers = effnet_np.classify([tmp_path / "a.png", tmp_path / "b.png"], tmp_path / "model", backend="numpy")
    label = answers[0][0]["label"]
    (tmp_path / "list.csv").write_text(f'file,label\na.png,"{label}"\nb.png,tulip\n')
    expected = 1 + (answers[1][0]["label"] == "tulip")
    command = ["evaluate", str(tmp_path / "list.csv"), "--model", str(tmp_path / "model"), "--backend", "numpy", "--json"]
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["top1"]["right"], report["top1"]["total"], report["top5"]) == (expected, 2, None)
