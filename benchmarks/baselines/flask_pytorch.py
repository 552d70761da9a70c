"""The baseline: Flask's development server around PyTorch eager, as the course project had it.

    .venv/export/bin/python -m benchmarks.baselines.flask_pytorch --weights densenet121.pth --port 5000

Written as such servers usually are, neither crippled nor tuned: torchvision's model and transforms, `eval()`,
`no_grad()`, and the default threads of PyTorch and Flask. Only weights and port are options.
"""

import argparse
import io
import json
from pathlib import Path

import torch
from flask import Flask, Response, jsonify, request
from PIL import Image
from torchvision import transforms

from benchmarks.baselines.densenet import load_densenet

CLASS_INDEX = Path(__file__).resolve().parent.parent.parent / "imagenet_class_index.json"

app = Flask(__name__)
imagenet_class_index = json.loads(CLASS_INDEX.read_text())

transform = transforms.Compose(
    [
        transforms.Resize(256),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
    ]
)


def get_prediction(image_bytes: bytes) -> tuple[str, str]:
    """The ImageNet id and the label of the most probable class."""
    image = Image.open(io.BytesIO(image_bytes)).convert("RGB")
    tensor = transform(image).unsqueeze(0)
    with torch.no_grad():
        outputs = model(tensor)
    _, predicted = outputs.max(1)
    imagenet_id, label = imagenet_class_index[str(predicted.item())]
    return imagenet_id, label


@app.route("/", methods=["GET"])
def index() -> str:
    return "Server is Running"


@app.route("/upload", methods=["POST"])
def upload() -> Response:
    file = request.files["file"]
    imagenet_id, label = get_prediction(file.read())
    return jsonify({"imagenet_id": imagenet_id, "label": label})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.baselines.flask_pytorch")
    parser.add_argument("--weights", help="state dict, .pth (default: torchvision's own)")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=5000)
    options = parser.parse_args()
    model = load_densenet(options.weights)
    app.run(host=options.host, port=options.port)
