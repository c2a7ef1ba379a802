"""Writes `state_dicts.json`: names, types and shapes of state dicts that our files must have. No data, no weights.

    python tests/golden/make_state_dicts.py

`torchvision/<net>`: torchvision's ResNets with the CIFAR stem (3x3 `conv1`, `fc` = Identity); `torchvision/<net>/7x7` has what differs
with the stem of torchvision's own. `reference/<case>`: the names of the authors' checkpoints, as `twin.py` has them.
"""

import json
import pathlib

import torch
import torchvision

from twin import Model

DTYPES = {torch.float32: "F32", torch.int64: "I64"}


def listed(module):
    return {name: [DTYPES[t.dtype], *t.shape] for name, t in module.state_dict().items()}


def resnet(name, stem):
    net = getattr(torchvision.models, name)()
    net.fc = torch.nn.Identity()
    if stem == 3:
        net.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
    return listed(net)


def main():
    dicts = {}
    for name in ("resnet18", "resnet34", "resnet50"):
        small, large = resnet(name, 3), resnet(name, 7)
        assert small.keys() == large.keys()
        dicts[f"torchvision/{name}"] = small
        dicts[f"torchvision/{name}/7x7"] = {k: v for k, v in large.items() if v != small[k]}
    with torch.device("meta"):
        for case, arguments in {
            "resnet18-w8": {"width": 8, "latent": 8},
            "resnet18-w8-ae": {"width": 8, "latent": 8, "method": "ae"},
            "resnet34-resnet18-w8-stl": {
                "encoder": "resnet34",
                "width": 8,
                "image": 96,
                "stem": "stl",
            },
            "resnet50-w64": {"encoder": "resnet50", "decoder": "resnet50"},
        }.items():
            dicts[f"reference/{case}"] = listed(Model(**arguments))
    rows = [
        f"{json.dumps(name)}: {json.dumps(tensors, separators=(',', ':'))}"
        for name, tensors in dicts.items()
    ]
    pathlib.Path(__file__).with_name("state_dicts.json").write_text(
        "{\n" + ",\n".join(rows) + "\n}\n"
    )


if __name__ == "__main__":
    main()
