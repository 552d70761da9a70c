import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from serve.api.app import create_app
from serve.config.settings import Config
from serve.model.classifier import Classifier, load_classifier, make_classifier
from tests.constant_model import constant_model
from tests.references import DATA
from tests.tiny_model import PATH as TINY_MODEL

PHOTOS = DATA / "photos"


@pytest.fixture(scope="session", autouse=True)
def unignored_signals() -> None:
    """Servers inherit ignored signals: a shell ignores SIGQUIT for background jobs, nohup ignores SIGHUP."""
    for number in (signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture(scope="session")
def config() -> Config:
    return Config(model=str(TINY_MODEL), decode="exact", allowed_hosts=("*",))


@pytest.fixture(scope="session")
def classifier(config: Config) -> Iterator[Classifier]:
    loaded = load_classifier(config)
    yield loaded
    loaded.close()


ClientFor = Callable[..., TestClient]


@pytest.fixture
def client_for(config: Config, classifier: Classifier) -> Iterator[ClientFor]:
    """Start an application with some settings changed; its lifespan ends with the test."""
    clients: list[TestClient] = []
    classifiers: list[Classifier] = []

    def start(**settings: Any) -> TestClient:
        changed = replace(config, **settings)
        using = make_classifier(changed, classifier.model, classifier.preprocessing, classifier.fork_server)
        classifiers.append(using)
        client = TestClient(create_app(changed, using), raise_server_exceptions=False)
        client.__enter__()
        clients.append(client)
        return client

    yield start
    for client in clients:
        client.__exit__(None, None, None)
    for each in classifiers:
        each.close()


@pytest.fixture
def client(client_for: ClientFor) -> TestClient:
    return client_for()


@pytest.fixture(scope="session")
def cat() -> bytes:
    return (PHOTOS / "cat.jpg").read_bytes()


@pytest.fixture(scope="session")
def coffee() -> bytes:
    return (PHOTOS / "coffee.jpg").read_bytes()


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    return TINY_MODEL


@pytest.fixture(scope="session")
def featureless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file that names no feature maps."""
    path = tmp_path_factory.mktemp("model") / "constant.onnx"
    path.write_bytes(constant_model([1.0, 2.0], labels=["a", "b"]))
    return path
