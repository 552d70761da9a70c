"""The old way, as the course project had it: Flask's development server around PyTorch eager.

    python benchmarks/baselines/flask_pytorch.py --weights densenet121.pth --port 5000

Kept as such code is usually written, neither crippled nor tuned: torchvision's model and transforms, `eval()`,
`no_grad()`, and the threads that PyTorch and Flask choose for themselves. Where the weights lie and the port are given.
"""

import argparse
import io
import json
import sys
from pathlib import Path

if not __package__:  # run as a file: make the project importable, and this folder's names not
    sys.path[0] = str(Path(__file__).resolve().parent.parent.parent)

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
    parser = argparse.ArgumentParser(prog="python benchmarks/baselines/flask_pytorch.py")
    parser.add_argument("--weights", help="state dict, .pth (default: torchvision's own)")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=5000)
    options = parser.parse_args()
    model = load_densenet(options.weights)
    app.run(host=options.host, port=options.port)
