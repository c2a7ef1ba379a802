"""Tensors from names: the deterministic fill shared by the PyTorch side and the Rust side.

Element `i` (row-major, PyTorch layout) of the tensor called `name`, all in wrapping u64 until the shift:

    s        = fnv1a64(utf8 bytes of name)             offset 0xcbf29ce484222325, prime 0x100000001b3
    z        = s + i * 0x9E3779B97F4A7C15
    z        = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z        = (z ^ (z >> 27)) * 0x94D049BB133111EB
    bits     = z ^ (z >> 31)
    value    = (bits >> 40) as f64 / 16777216.0 - 0.5  in [-0.5, 0.5), exact

A filled tensor is `(offset + value * scale) as f32`, computed in f64. Offset and scale of model tensors, by name and rank:

    log_scale                         0,  2
    *.running_mean                    0,  0.1
    *.running_var                     1,  0.2
    *.bias                            0,  0.2
    *.bn2.weight, *.bn3.weight        0.3, 0.2   (small: a deep net with batch statistics amplifies rounding)
    *.weight of rank 1 otherwise      1,  0.2
    *.weight of rank 2 or 4           0,  2 * sqrt(3) / sqrt(fan_in)     fan_in = product of shape[1..]
"""

import numpy as np

GOLDEN = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1


def fnv1a64(name):
    s = 0xCBF29CE484222325
    for byte in name.encode():
        s = ((s ^ byte) * 0x100000001B3) & MASK
    return s


def bits(name, n):
    with np.errstate(over="ignore"):
        z = np.uint64(fnv1a64(name)) + np.arange(n, dtype=np.uint64) * np.uint64(GOLDEN)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def fill(name, shape, scale=1.0, offset=0.0):
    n = int(np.prod(shape))
    value = (bits(name, n) >> np.uint64(40)).astype(np.float64) / 16777216.0 - 0.5
    return (offset + value * scale).astype(np.float32).reshape(shape)


def fill_parameter(name, shape):
    if name == "log_scale":
        return fill(name, shape, 2.0)
    leaf = name.rsplit(".", 1)[1]
    if leaf == "running_mean":
        return fill(name, shape, 0.1)
    if leaf == "running_var":
        return fill(name, shape, 0.2, 1.0)
    if leaf == "bias":
        return fill(name, shape, 0.2)
    if name.endswith((".bn2.weight", ".bn3.weight")):
        return fill(name, shape, 0.2, 0.3)
    if len(shape) == 1:
        return fill(name, shape, 0.2, 1.0)
    fan_in = float(np.prod(shape[1:]))
    return fill(name, shape, 2.0 * np.sqrt(3.0) / np.sqrt(fan_in))


def sample_indices(name, numel, count):
    """Flat indices of the sampled elements of the tensor called `name`."""
    return (bits("idx/" + name, count) % np.uint64(numel)).astype(np.int64)
