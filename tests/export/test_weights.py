"""State dicts of all ages are read; one that does not fit is refused, and the key is named."""

import hashlib
import pickle
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models import Weights as TorchvisionWeights
from torchvision.models import WeightsEnum
from torchvision.transforms._presets import ImageClassification

from export import weights as weights_module
from export.architectures import Architecture
from export.errors import WeightsError
from export.state_keys import network_state
from export.weights import build_network, default_weights, read_weights, untrained_weights
from tests.local_host import serving

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state(densenet121: Architecture) -> State:
    torch.manual_seed(0)
    return dict(densenet121.build().state_dict())


def saved(state: Any, folder: Path) -> Path:
    path = folder / "weights.pth"
    torch.save(state, path)
    return path


def assert_same_network(architecture: Architecture, path: Path, state: State) -> None:
    loaded = build_network(architecture, read_weights(path)).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


def old_keys(state: State) -> State:
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", key): value for key, value in state.items()}


@pytest.mark.parametrize(
    "rename",
    [
        lambda state: state,
        old_keys,
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {f"module.{key}": value for key, value in old_keys(state).items()},
        lambda state: {key: value for key, value in state.items() if "num_batches_tracked" not in key},
        lambda state: {"state_dict": state, "epoch": 90},
    ],
    ids=["torchvision's", "old keys", "DataParallel", "old DataParallel", "without batch counters", "checkpoint"],
)
def test_state_dicts_of_every_vintage_give_the_same_network(
    rename: Callable[[State], Any], densenet121: Architecture, state: State, tmp_path: Path
) -> None:
    assert_same_network(densenet121, saved(rename(state), tmp_path), state)


def test_safetensors_are_read(densenet121: Architecture, state: State, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    assert_same_network(densenet121, path, state)


def test_old_keys_are_renamed_and_new_ones_left_alone() -> None:
    keys = ["features.denseblock1.denselayer2.norm.1.weight", "features.denseblock1.denselayer2.conv2.weight"]
    renamed = network_state(dict.fromkeys(keys, torch.zeros(1)))
    assert list(renamed) == ["features.denseblock1.denselayer2.norm1.weight", keys[1]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("features.norm5.bias"), "missing features.norm5.bias"),
        (lambda state: state.update({"extra.weight": torch.zeros(1)}), "unexpected extra.weight"),
        (
            lambda state: state.update({"classifier.weight": torch.zeros(14, 999)}),
            r"wrong shape: classifier.weight is \[14, 999\], but densenet121 has \[14, 1024\], classifier.bias is",
        ),
        (
            lambda state: state.update({"features.norm0.bias": torch.full((64,), torch.nan)}),
            "not finite, as after a training that diverged: features.norm0",
        ),
    ],
    ids=["missing", "unexpected", "another width", "NaN"],
)
def test_a_state_dict_that_does_not_fit_is_refused_by_the_key(
    change: Callable[[State], Any], words: str, densenet121: Architecture, state: State, tmp_path: Path
) -> None:
    changed = dict(state)
    change(changed)
    with pytest.raises(WeightsError, match=rf"^weights weights\.pth do not fit densenet121: {words}"):
        build_network(densenet121, read_weights(saved(changed, tmp_path)))


def test_many_missing_keys_are_counted(densenet121: Architecture, state: State) -> None:
    head = {key: value for key, value in state.items() if key.startswith("classifier.")}
    with pytest.raises(WeightsError, match=r"missing features\.conv0\.weight.* and 599 more"):
        build_network(densenet121, replace(untrained_weights(densenet121, 0), state=head))


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("this must not run",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (pickle.dumps({"a": Code()}), "neither of torch.save nor safetensors"),
        (b"", "the file is empty; copy it again"),
        (b"rubbish" * 100, "neither of torch.save nor safetensors"),
    ],
    ids=["code", "empty", "rubbish"],
)
def test_a_file_that_is_no_state_dict_is_refused(
    content: bytes, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("weights.pth", "weights.safetensors"):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=words):
            read_weights(path)
    assert "this must not run" not in capsys.readouterr().out


def test_other_contents_are_refused_with_a_description(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="are of type list, not a state dict"):
        read_weights(saved([1], tmp_path))
    with pytest.raises(WeightsError, match=r"have no state dict, only 'epoch' \(int\); save the weights"):
        read_weights(saved({"epoch": 1}, tmp_path))
    with pytest.raises(WeightsError, match=r"none\.pth: no such file"):
        read_weights(tmp_path / "none.pth")


def test_a_seed_gives_the_same_untrained_network_twice_and_leaves_the_random_state_alone(
    densenet121: Architecture,
) -> None:
    before = torch.get_rng_state()
    first, second = (untrained_weights(densenet121, 5).state for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(
        first["features.norm5.running_var"], torch.ones(1024)
    )  # the statistics are those of the noise


@pytest.fixture
def weights_host(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A local HTTP server in the place of the host of torchvision's weights: its URL, and the folder it serves."""
    folder = tmp_path / "host"
    folder.mkdir()
    with serving(folder) as url:
        yield url, folder


def published(densenet121: Architecture, url: str) -> Architecture:
    class DenseNet121_Weights(WeightsEnum):  # noqa: N801  torchvision's own name
        IMAGENET1K_V1 = TorchvisionWeights(url=url, transforms=ImageClassification, meta={})

    return replace(densenet121, default_weights=DenseNet121_Weights.IMAGENET1K_V1)


def test_default_weights_are_downloaded_once_checked_and_cached(
    densenet121: Architecture,
    state: State,
    weights_host: tuple[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    url, folder = weights_host
    file = saved(state, folder)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    name = f"densenet121-{sha256[:8]}.pth"
    file.rename(folder / name)
    architecture = published(densenet121, f"{url}/{name}")
    loaded = default_weights(architecture)
    assert loaded.sha256 == sha256
    assert loaded.source == "torchvision DenseNet121_Weights.IMAGENET1K_V1"
    (folder / name).unlink()
    assert default_weights(architecture).sha256 == sha256  # from the cache
    (tmp_path / "hub" / "checkpoints" / name).write_bytes(b"rubbish")
    with pytest.raises(WeightsError, match=rf"sha256 is [0-9a-f]{{64}}, not {sha256[:8]}…; delete the file"):
        default_weights(architecture)


def test_a_download_with_the_wrong_hash_is_refused_and_not_kept(
    densenet121: Architecture, weights_host: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    url, folder = weights_host
    (folder / "densenet121-01234567.pth").write_bytes(b"rubbish")
    with pytest.raises(WeightsError, match="invalid hash value"):
        default_weights(published(densenet121, f"{url}/densenet121-01234567.pth"))
    assert list((tmp_path / "hub" / "checkpoints").iterdir()) == []


def test_a_host_that_cannot_be_reached_is_one_clear_error(
    densenet121: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setattr(weights_module, "_CONNECT_SECONDS", 1.0)
    url = "http://127.0.0.1:9/densenet121-01234567.pth"  # the discard port, where nothing listens
    with pytest.raises(WeightsError) as refusal:
        default_weights(published(densenet121, url))
    for words in (str(tmp_path / "hub"), url, "refused", "WEIGHTS=PATH", "--weights PATH"):
        assert words in str(refusal.value)
