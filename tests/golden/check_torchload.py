"""Loads a checkpoint into the PyTorch twin with strict=True and prints the number of keys.

    python tests/golden/check_torchload.py CHECKPOINT.safetensors

The architecture is read off the names and shapes. Tensors named `optim.*` are not part of the model.
"""

import json
import re
import sys

import torch
from safetensors.torch import load_file

from twin import DECODER_BLOCKS, ENCODER_BLOCKS, Model


def arch_of(state, part, table):
    blocks = [
        1 + max(int(m[1]) for k in state if (m := re.match(rf"{part}\.layer{i}\.(\d+)\.", k)))
        for i in range(1, 5)
    ]
    bottleneck = f"{part}.layer1.0.conv3.weight" in state
    for name, want in table.items():
        if want == blocks and (name == "resnet50") == bottleneck:
            return name
    raise SystemExit(f"{part}: no architecture has blocks {blocks}")


def main():
    tensors = load_file(sys.argv[1])
    state = {k: v for k, v in tensors.items() if not k.startswith("optim.")}
    variational = "projection.mu.weight" in state
    contrastive = not any(k.startswith("decoder.") for k in state)
    encoder = arch_of(state, "encoder", ENCODER_BLOCKS)
    head = state["projection.mu.weight" if variational else "projection.projection_head.3.weight"]
    model = Model(
        method="simclr" if contrastive else "aavae" if variational else "aaae",
        encoder=encoder,
        decoder=encoder if contrastive else arch_of(state, "decoder", DECODER_BLOCKS),
        width=state["encoder.conv1.weight"].shape[0],
        latent=head.shape[0],
        stem="cifar" if state["encoder.conv1.weight"].shape[-1] == 3 else "stl",
    )
    for key, value in model.state_dict().items():
        if key in state and (state[key].shape, state[key].dtype) != (value.shape, value.dtype):
            raise SystemExit(
                f"{key}: is {state[key].dtype}{list(state[key].shape)}, not {value.dtype}{list(value.shape)}"
            )
    model.load_state_dict(state, strict=True)
    bad = [k for k, v in state.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if bad:
        raise SystemExit(f"not finite: {bad}")
    print(
        json.dumps(
            {
                "keys": len(state),
                "optimiser_tensors": len(tensors) - len(state),
                "variational": variational,
            }
        )
    )


if __name__ == "__main__":
    main()
