"""Runs the README's snippet in the current folder, then compares its `model` with `aavae embed`, feature by feature.

    python3 check_torchvision.py README.md        in a folder with encoder.safetensors, data/test/<class>/*.png and features.safetensors

The images are as large as the network's, so that nobody resizes; their normalisation is in the metadata of encoder.safetensors.
"""

import json
import pathlib
import sys

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torchvision.transforms.functional import normalize, to_tensor

TOLERANCE = 1e-4


def snippet(readme):
    """The one Python block that imports torchvision."""
    blocks = [
        part.split("```")[0] for part in pathlib.Path(readme).read_text().split("```python\n")[1:]
    ]
    (found,) = [block for block in blocks if "torchvision" in block]
    assert "strict=True" in found, found
    return found


def main():
    scope = {}
    exec(snippet(sys.argv[1]), scope)
    model = scope["model"]
    assert not model.training
    with safe_open("encoder.safetensors", "pt") as f:
        mean, std = (json.loads(f.metadata()[key]) for key in ("mean", "std"))
    files = sorted(pathlib.Path("data/test").glob("*/*.png"))
    images = torch.stack(
        [normalize(to_tensor(Image.open(file).convert("RGB")), mean, std) for file in files]
    )
    with torch.no_grad():
        got = model(images)
    want = load_file("features.safetensors")["features"]
    assert got.shape == want.shape == (len(files), 512), (got.shape, want.shape)
    apart = (want[0] - want[1]).abs().max().item()
    error = (got - want).abs().max().item() / want.abs().max().item()
    print(json.dumps({"images": len(files), "relative_error": error, "tolerance": TOLERANCE}))
    assert error < TOLERANCE and apart > 100 * TOLERANCE * want.abs().max().item(), (error, apart)


if __name__ == "__main__":
    main()
