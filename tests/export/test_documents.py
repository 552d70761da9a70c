"""Compares the predictions that the documents show with the exported model's."""

import hashlib
from pathlib import Path

import pytest

from tests.documents import DOCUMENTS, Command, agrees, commands_in, run
from tests.export.conftest import REAL
from tests.make_process import fresh_tree
from tests.server_process import running_server

# Of the weights that the documents' predictions were made with; with others only the form is compared.
WEIGHTS_SHA256 = "88cb0ac96dd096dd68cc33b77fd31514d5e20baebb750dd4c508dfe5434cdcd4"
SHOWN = [
    command
    for document in DOCUMENTS
    for command in commands_in(document)
    if "tests/data/photos" in command.text and command.shown and not command.mark
]

if REAL:

    @pytest.mark.parametrize("command", SHOWN, ids=str)
    def test_a_prediction_is_the_exported_models(
        command: Command, weights: Path, exported: Path, runtime_python: Path, tmp_path: Path
    ) -> None:
        int8 = exported.with_suffix(".int8.onnx")
        model = str(int8 if int8.exists() else exported)
        with running_server(runtime_python, "--model", model, "--log-format", "json") as server:
            done = run(command.text, fresh_tree(tmp_path / "clone"), runtime_python, server.url, model)
        same_model = int8.exists() and hashlib.sha256(weights.read_bytes()).hexdigest() == WEIGHTS_SHA256
        assert agrees(command.shown, done, same_model), done.stdout
