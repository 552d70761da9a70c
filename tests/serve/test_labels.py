"""Labels in every format that people have them in, and what is said about labels that do not fit the model."""

import json

import pytest

from serve.config.settings import ROOT
from serve.model.labels import Label, parse_labels, require_labels

PLAIN = (Label(None, "cat"), Label(None, "dog, big"), Label(None, "bird"))
WITH_IDS = (Label("n1", "cat"), Label("n2", "dog, big"), Label("n3", "bird"))


@pytest.mark.parametrize(
    ("text", "suffix", "labels"),
    [
        ("cat\ndog, big\nbird\n", ".txt", PLAIN),
        ("cat\r\n dog, big \r\nbird\r\n\r\n", "", PLAIN),
        ('["cat", "dog, big", "bird"]', ".json", PLAIN),
        ('[["n1", "cat"], ["n2", "dog, big"], ["n3", "bird"]]', ".json", WITH_IDS),
        ('{"2": "bird", "0": "cat", "1": "dog, big"}', ".json", PLAIN),
        ('{"2": ["n3", "bird"], "0": ["n1", "cat"], "1": ["n2", "dog, big"]}', ".JSON", WITH_IDS),
        ('{"bird": 2, "cat": 0, "dog, big": 1}', ".json", PLAIN),
        ('{"class_to_idx": {"bird": 2, "cat": 0, "dog, big": 1}, "epoch": 3}', ".json", PLAIN),
        ('cat\n"dog, big"\nbird\n', ".csv", PLAIN),
        ('name\ncat\n"dog, big"\nbird\n', ".csv", PLAIN),
        ('0,cat\n2,bird\n1,"dog, big"\n', ".csv", PLAIN),
        ("0;cat\r\n1;dog, big\r\n2;bird\r\n", ".csv", PLAIN),
        ("index\tid\tname\n0\tn1\tcat\n1\tn2\tdog, big\n2\tn3\tbird\n", ".csv", WITH_IDS),
        ('0,n1,cat\n2,n3,bird\n1,n2,"dog, big"\n', ".csv", WITH_IDS),
        ('Label,colour,Index\ncat,red,0\nbird,blue,2\n\n"dog, big",,1\n', ".csv", PLAIN),
        ('wnid,label\nn1,cat\nn2,"dog, big"\nn3,bird\n', ".csv", WITH_IDS),
    ],
)
def test_every_format_gives_the_labels_in_the_order_of_the_classes(
    text: str, suffix: str, labels: tuple[Label, ...]
) -> None:
    assert parse_labels(text, suffix, 3) == labels


@pytest.mark.parametrize(
    ("text", "suffix", "words"),
    [
        ("cat\ndog", ".txt", "2 labels for a model of 3 classes: none for class 2"),
        ("", ".txt", "0 labels for a model of 3 classes: none for class 0, 1, 2"),
        ("", ".csv", "0 labels for a model of 3 classes: none for class 0, 1, 2"),
        ("a\nb\nc\nd\ne\nf\ng\nh", ".txt", "8 labels for a model of 3 classes: 'd', 'e', 'f' and 2 more are too many"),
        ("cat\ndog\ncat", ".txt", "classes 0 and 2 have the same label, 'cat'"),
        ("cat\n\ndog", ".txt", "the label of class 1 is '', not a name"),
        ("cat\n\ndog\nbird", ".txt", "the label of class 1 is '', not a name"),
        ('["cat", " ", "dog"]', ".json", "the label of class 1 is ' ', not a name"),
        ('[["n1", "cat"], ["n\\u0000", "dog"], ["n3", "bird"]]', ".json", r"the id of class 1 is 'n\\x00', not a name"),
        ('"cat\nbig"\ndog\nbird', ".csv", r"the label of class 0 is 'cat\\nbig', not a name without control"),
        ('"cat\ndog\nbird', ".csv", r"the label of class 0 is 'cat\\ndog\\nbird', not a name without control"),
        (f"cat\ndog\n{'b' * 200_000}", ".csv", "not CSV: field larger than field limit"),
        ("cat\nd\x1bog\nbird", ".txt", "the label of class 1 is .*, not a name without control characters"),
        ("{", ".json", "not JSON"),
        ("[" * 100_000, ".json", "not JSON"),
        ("3", ".json", "no JSON object or list of labels"),
        ('["cat", 1, "dog"]', ".json", "entry '1' is 1, not a name"),
        ('{"0": "cat", "1": null, "2": "dog"}', ".json", "entry '1' is None, not a name"),
        ('{"0": "cat", "0": "dog"}', ".json", "two entries are called '0'"),
        ('{"0": "cat", "1": "dog", "3": "bird"}', ".json", "class 2 has no label, but class 3 has one"),
        ('{"cat": 0, "dog": 0, "bird": 1}', ".json", "class 0 has two labels, 'cat' and 'dog'"),
        ('{"cat": -1, "dog": 0, "bird": 1}', ".json", "class 2 has no label, but class -1 has one"),
        ('{"cat": true, "dog": false}', ".json", "'cat' is not the number of a class"),
        ('{"one": "cat", "1": "dog"}', ".json", "'one' is not the number of a class"),
        ("zero,cat\n1,dog\n2,bird", ".csv", "'zero' is not the number of a class"),
        ("0,1,2,3\n", ".csv", "4 columns without a header; name them index, id and name"),
        ("0,cat\n1,dog, big\n2,bird\n", ".csv", "row 2 has 3 columns, not 2"),
    ],
)
def test_labels_that_do_not_fit_are_refused_with_what_is_wrong(text: str, suffix: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as refusal:
        parse_labels(text, suffix, 3)
    assert str(refusal.value).isprintable()


def test_two_classes_of_one_name_are_told_apart_by_their_ids() -> None:
    cranes = [Label("n02012849", "crane"), Label("n03126707", "crane")]
    assert require_labels(cranes, 2) == tuple(cranes)
    index = (ROOT / "imagenet_class_index.json").read_text(encoding="utf-8")
    assert [label.imagenet_id for label in parse_labels(index, ".json", 1000) if label.name == "crane"] == [
        label.imagenet_id for label in cranes
    ]


def test_twenty_thousand_labels_are_read() -> None:
    names = [f"plant {number}" for number in range(20_000)]
    assert [label.name for label in parse_labels(json.dumps(names), ".json", 20_000)] == names
