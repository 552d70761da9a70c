"""Softmax and sigmoid, temperature, top-k and the class index."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from serve.config.settings import ROOT
from serve.errors import ClassIndexError, ModelError
from serve.model.class_index import load_class_index
from serve.model.labels import Label
from serve.model.postprocess import SIGMOID, SOFTMAX, Activation, ranking, top_k

LABELS = tuple(Label(f"n{position}", name) for position, name in enumerate("abcd"))


def test_probabilities_are_the_softmax_over_all_classes() -> None:
    logits = np.array([1.0, 2.0, 0.5, -1.0], np.float32)
    expected = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum()
    np.testing.assert_allclose(Activation().probabilities(logits, np.arange(4)), expected, rtol=1e-12)
    assert [entry.probability for entry in top_k(logits, LABELS, 2)] == pytest.approx(sorted(expected)[:1:-1])


def test_a_sigmoid_is_each_classs_own() -> None:
    logits = np.array([1.0, 2.0, 0.5, -1.0], np.float32)
    expected = 1 / (1 + np.exp(-logits.astype(np.float64)))
    found = top_k(logits, LABELS, 4, Activation(SIGMOID))
    assert [entry.label.name for entry in found] == ["b", "a", "c", "d"]
    assert [entry.probability for entry in found] == pytest.approx(sorted(expected)[::-1], rel=1e-12)


@pytest.mark.parametrize("name", [SOFTMAX, SIGMOID])
def test_the_temperature_divides_the_logits(name: str) -> None:
    logits = np.array([1.0, 2.0, 0.5, -1.0], np.float32)
    found, halved = (
        top_k(logits, LABELS, 4, Activation(name, 2.0)),
        top_k(np.divide(logits, 2, dtype=np.float32), LABELS, 4, Activation(name)),
    )
    assert found == halved
    assert found != top_k(logits, LABELS, 4, Activation(name))


@pytest.mark.parametrize(("name", "middle"), [(SOFTMAX, 0.0), (SIGMOID, 0.5)])
@pytest.mark.filterwarnings("error")
def test_huge_logits_do_not_overflow(name: str, middle: float) -> None:
    logits = np.array([1e30, 0, -1e30], np.float32)
    assert Activation(name, 0.1).probabilities(logits, np.arange(3)).tolist() == [1.0, middle, 0.0]


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"activation": "relu"}, 'activation=\'relu\'; set it to "softmax" or "sigmoid"'),
        ({"activation": None}, "activation=None"),
        ({"temperature": 0}, "temperature=0; set it to a number from 0.001 to 1000, or leave it out"),
        ({"temperature": -1.5}, "temperature=-1.5"),
        ({"temperature": "1"}, "temperature='1'"),
        ({"temperature": True}, "temperature=True"),
        ({"temperature": 10**400}, "temperature=1000000"),
        ({"temperature": 1e-320}, "temperature=1e-320"),
    ],
)
def test_an_activation_that_is_none_is_refused_by_its_entry(entries: dict[str, object], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        Activation.from_card(entries)


def test_an_activation_is_softmax_at_temperature_1_unless_the_card_says_so() -> None:
    assert Activation.from_card({}) == Activation(SOFTMAX, 1.0)
    assert Activation.from_card({"activation": SIGMOID, "temperature": 2}) == Activation(SIGMOID, 2.0)


def test_the_top_classes_are_in_descending_order_with_ties_in_index_order() -> None:
    logits = np.array([0.0, 3.0, 3.0, 1.0], np.float32)
    assert [entry.label.name for entry in top_k(logits, LABELS, 4)] == ["b", "c", "d", "a"]


def test_ties_among_a_thousand_classes_are_in_index_order() -> None:
    """Unstable sorts often look stable on short lists."""
    logits = np.random.default_rng(0).integers(0, 4, 1000).astype(np.float32)
    labels = tuple(Label(f"n{position}", str(position)) for position in range(1000))
    wanted = sorted(range(1000), key=lambda position: (-logits[position], position))
    for k in (1, 7, 300, 1000):
        assert [int(entry.label.name) for entry in top_k(logits, labels, k)] == wanted[:k]


def test_the_ranking_is_that_of_a_stable_sort() -> None:
    random = np.random.default_rng(0)
    for classes in (1, 2, 3, 1000, 20_000):
        for logits in (random.standard_normal(classes), random.integers(0, 3, classes), np.full(classes, np.nan)):
            floats = logits.astype(np.float32)
            for k in (1, 5, classes, classes + 1):
                assert ranking(floats, k).tolist() == np.argsort(-floats, kind="stable")[:k].tolist()


def test_the_class_index_has_every_imagenet_class() -> None:
    labels = load_class_index(ROOT / "imagenet_class_index.json", 1000)
    assert labels[0] == Label("n01440764", "tench")
    assert labels[207] == Label("n02099601", "golden_retriever")
    assert labels[999] == Label("n15075141", "toilet_tissue")
    assert len({label.imagenet_id for label in labels}) == 1000
    content = json.loads((ROOT / "imagenet_class_index.json").read_text())
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    # SHA-256 of the content of Keras's file, in canonical form
    assert hashlib.sha256(canonical).hexdigest() == "064f533445b64af28920110f37e5bee0270d41f45c1384c25bd2c533dc9dbdb4"


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("no json", "not JSON"),
        ("[]", "0 labels for a model of 2 classes"),
        (json.dumps({"0": ["n0", "a"]}), "1 labels for a model of 2 classes: none for class 1"),
        (json.dumps({"0": ["n0", "a"], "2": ["n2", "c"]}), "class 1 has no label"),
        (json.dumps({"0": ["n0", "a"], "1": 3}), "entry '1' is 3"),
    ],
)
def test_a_class_index_that_does_not_fit_is_refused(tmp_path: Path, content: str, named: str) -> None:
    path = tmp_path / "index.json"
    path.write_text(content)
    with pytest.raises(ClassIndexError, match=named):
        load_class_index(path, 2)


@pytest.mark.parametrize("odd", ["\x1b[31m", "\x9b", "\x7f", "\n", "\0", "\u2028", "\ud800"])
@pytest.mark.parametrize("entry", [["n1{}", "b"], ["n1", "b{}"]])
def test_a_name_with_control_characters_is_refused_and_its_class_named(
    tmp_path: Path, odd: str, entry: list[str]
) -> None:
    path = tmp_path / "index.json"
    path.write_text(json.dumps({"0": ["n0", "a"], "1": [part.format(odd) for part in entry]}))
    with pytest.raises(ClassIndexError, match=r"the (label|id) of class 1 is .*without control characters") as found:
        load_class_index(path, 2)
    assert str(found.value).isprintable()


def test_names_may_be_of_any_language_and_have_its_joiners(tmp_path: Path) -> None:
    names = ["می\u200cخواهم", "秋田\u3000犬", "Spitz\u00a0(klein)", "👩\u200d🚒", "Zwerg\u00adschnauzer"]
    path = tmp_path / "index.json"
    path.write_text(json.dumps({str(number): ["n", name] for number, name in enumerate(names)}))
    assert [label.name for label in load_class_index(path, len(names))] == names


@pytest.mark.parametrize(
    "value", ["[" * 100_000, "[" * 900 + "]" * 900, "9" * 10_000, '["n", "' + "a" * 100_000 + '", 1]', "NaN"]
)
def test_an_invalid_class_gets_a_short_error(tmp_path: Path, value: str) -> None:
    path = tmp_path / "index.json"
    path.write_text(f'{{"0": {value}}}')
    with pytest.raises(ClassIndexError) as found:
        load_class_index(path, 1)
    assert len(str(found.value)) < 500 + len(str(path))


def test_a_missing_class_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClassIndexError, match="No such file"):
        load_class_index(tmp_path / "none.json", 2)


@pytest.mark.parametrize(("size", "words"), [(16 * 2**20, "not JSON"), (16 * 2**20 + 1, "more than 16777216 bytes")])
def test_a_class_index_may_have_16_mebibytes(tmp_path: Path, size: int, words: str) -> None:
    path = tmp_path / "index.json"
    with path.open("wb") as file:
        file.truncate(size)
    with pytest.raises(ClassIndexError, match=words):
        load_class_index(path, 2)
