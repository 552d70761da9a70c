"""Softmax, top-k and labels."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from serve.config.settings import ROOT
from serve.errors import ClassIndexError
from serve.model.postprocess import Label, load_class_index, softmax, top_k

LABELS = tuple(Label(f"n{position}", name) for position, name in enumerate("abcd"))


def test_probabilities_are_the_softmax_over_all_classes() -> None:
    logits = np.array([1.0, 2.0, 0.5, -1.0], np.float32)
    expected = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum()
    np.testing.assert_allclose(softmax(logits), expected, rtol=1e-12)
    assert [entry.probability for entry in top_k(logits, LABELS, 2)] == pytest.approx(sorted(expected)[:1:-1])


def test_huge_logits_do_not_overflow() -> None:
    assert softmax(np.array([1e30, 0, -1e30], np.float32)).tolist() == [1.0, 0.0, 0.0]


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
        ("[]", "no JSON object"),
        (json.dumps({"0": ["n0", "a"]}), "has 1 entries, but the model has 2 classes"),
        (json.dumps({"0": ["n0", "a"], "2": ["n2", "c"]}), 'entry "1" is None'),
        (json.dumps({"0": ["n0", "a"], "1": "b"}), "entry \"1\" is 'b'"),
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
    with pytest.raises(ClassIndexError, match=r'entry "1" is .*without control characters') as found:
        load_class_index(path, 2)
    assert str(found.value).isprintable()


def test_names_may_be_of_any_language_and_have_its_joiners(tmp_path: Path) -> None:
    names = ["می\u200cخواهم", "秋田\u3000犬", "Spitz\u00a0(klein)", "👩\u200d🚒", "Zwerg\u00adschnauzer"]
    path = tmp_path / "index.json"
    path.write_text(json.dumps({str(number): ["n", name] for number, name in enumerate(names)}))
    assert [label.name for label in load_class_index(path, len(names))] == names


@pytest.mark.parametrize(
    "value", ["[" * 100_000, "[" * 900 + "]" * 900, "9" * 10_000, '"' + "a" * 100_000 + '"', "NaN"]
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
