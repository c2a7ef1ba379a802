#!/usr/bin/env python3
"""Replays the random draws of one AAVAE step, and the views they give, from nothing but the specification, and compares them with what the program drew.

    python3 tests/replay.py DUMP.json

`tests/replay.rs` writes the dump; the standard library is all this needs. Exit status 0: every number agrees; 1: some do not (each is
printed); 2: the dump cannot be read.

What is specified where: `src/rng.rs` (generator, streams, counters), `src/ops/augment_params.rs` (augmentation),
`src/ops/augment.rs` (views), `src/ops/random_normal.rs` (noise), `src/data/split.rs` (split and order), `src/nn/params.rs` (initial weights). In short:

    philox(seed, stream, step, sample, index) -> 4 words, key = (seed, (seed >> 32) ^ stream * 0x9E3779B9), counter = (step, sample, index, 0)
    uniform(word) = (word >> 8) / 2^24
    normals: Box-Muller on words (0, 1) and (2, 3), with (word >> 8) + 1/2 under the logarithm

Flags, orders, permutations and crop boxes agree exactly (a box may not where its size is within 1e-4 of a rounding boundary: the dump's
seed keeps clear of those). Factors, noise and weights are rounded to f32 once or twice: they agree to 1e-6 of the larger of 1 and their
size. Views pass through some ten roundings, and a normalisation that divides by 0.25: 2e-5.
"""

import colorsys
import json
import math
import struct
import sys

INIT, ORDER, SPLIT, NOISE, AUGMENT = 1, 2, 3, 4, 5
MASK = 0xFFFFFFFF
TOLERANCE = 1e-6
VIEW_TOLERANCE = 2e-5


def f32(x):
    """The nearest f32."""
    return struct.unpack("<f", struct.pack("<f", x))[0]


def philox(seed, stream, step, sample, index):
    """Philox4x32-10 (Salmon et al. 2011)."""
    k0, k1 = seed & MASK, (seed >> 32) ^ (stream * 0x9E3779B9 & MASK)
    c0, c1, c2, c3 = step, sample, index, 0
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & MASK, (p0 >> 32) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


def uniforms(*counter):
    return [(word >> 8) / 2**24 for word in philox(*counter)]


def normals(*counter):
    words = philox(*counter)
    out = []
    for a, b in (words[:2], words[2:]):
        r = math.sqrt(-2 * math.log(((a >> 8) + 0.5) / 2**24))
        t = 2 * math.pi * (b >> 8) / 2**24
        out += [r * math.cos(t), r * math.sin(t)]
    return out


def fnv1a(text):
    h = 0x811C9DC5
    for byte in text.encode():
        h = (h ^ byte) * 0x01000193 & MASK
    return h


def permutation(n, seed, stream, epoch):
    """Fisher-Yates from the end."""
    p = list(range(n))
    for i in range(n - 1, 0, -1):
        j = philox(seed, stream, epoch, 0, i)[0] * (i + 1) >> 32
        p[i], p[j] = p[j], p[i]
    return p


def crop_box(recipe, seed, step, sample, side):
    """Top, left, height, width: the first of ten tries that fits, otherwise the whole (square) image."""
    lo, hi = recipe["scale"]
    log_lo, log_hi = (math.log(r) for r in recipe["ratio"])
    for t in range(10):
        u = uniforms(seed, AUGMENT, step, sample, t)
        area = side * side * (lo + (hi - lo) * u[0])
        ratio = math.exp(log_lo + (log_hi - log_lo) * u[1])
        sizes = math.sqrt(area / ratio), math.sqrt(area * ratio)
        if any(abs(x % 1 - 0.5) < 1e-4 for x in sizes):
            raise ValueError(
                f"sample {sample}: a crop of {sizes} is too near a rounding boundary to replay; take another seed"
            )
        height, width = (math.floor(x + 0.5) for x in sizes)
        if 1 <= height <= side and 1 <= width <= side:
            return [
                math.floor(f32(u[2] * (side - height + 1))),
                math.floor(f32(u[3] * (side - width + 1))),
                height,
                width,
            ]
    return [0, 0, side, side]


def augmentation(recipe, seed, step, sample, side):
    """The row of 32 numbers of one image."""
    chance = uniforms(seed, AUGMENT, step, sample, 10)
    flags = [
        float(u < f32(recipe[p]))
        for u, p in zip(chance, ("flip_p", "jitter_p", "grey_p", "blur_p"))
    ]
    strength = recipe["strength"]
    lo = max(0.0, 1 - 0.8 * strength)
    u = uniforms(seed, AUGMENT, step, sample, 11)
    factors = [lo + (1 + 0.8 * strength - lo) * x for x in u[:3]] + [
        0.2 * strength * (2 * u[3] - 1)
    ]
    u = uniforms(seed, AUGMENT, step, sample, 12)
    order = [0, 1, 2, 3]
    for draw, i in zip(u, (3, 2, 1)):
        j = math.floor(draw * (i + 1))
        order[i], order[j] = order[j], order[i]
    sigma = recipe["sigma"][0] + (recipe["sigma"][1] - recipe["sigma"][0]) * u[3]
    return crop_box(recipe, seed, step, sample, side) + flags + order + factors + [sigma] + [0] * 15


def taps(i, size, out):
    """Antialiased bilinear: (position, weight) pairs of output `i` of `out`, for an input of `size`."""
    scale = size / out
    support, centre = max(scale, 1), (i + 0.5) * scale
    weights = [max(0, 1 - abs(j + 0.5 - centre) / support) for j in range(size)]
    return [(j, w / sum(weights)) for j, w in enumerate(weights) if w]


def grey(rgb):
    return 0.2989 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]


def blend(rgb, other, factor):
    return [min(max(factor * x + (1 - factor) * other, 0), 1) for x in rgb]


def view(row, pixels, side, mean, std):
    """Crop, flip, colour jitter, grey, normalise: `side * side` RGB triples. (CIFAR-10's recipe has no blur.)"""
    top, left, height, width, flip, jitter, to_grey, _, *order = row[:12]
    factors = row[12:16]
    unpacked = [[(p >> shift & 255) / 255 for shift in (0, 8, 16)] for p in pixels]
    rows, columns = ([taps(i, size, side) for i in range(side)] for size in (height, width))
    if flip:
        columns.reverse()
    image = []
    for ty in rows:
        for tx in columns:
            cells = [
                (wy * wx, unpacked[(top + y) * side + left + x]) for y, wy in ty for x, wx in tx
            ]
            image.append([sum(w * rgb[c] for w, rgb in cells) for c in range(3)])
    for op in order if jitter else []:
        if op == 0:
            image = [blend(rgb, 0, factors[0]) for rgb in image]
        elif op == 1:
            average = sum(grey(rgb) for rgb in image) / len(image)
            image = [blend(rgb, average, factors[1]) for rgb in image]
        elif op == 2:
            image = [blend(rgb, grey(rgb), factors[2]) for rgb in image]
        else:
            hsv = [colorsys.rgb_to_hsv(*rgb) for rgb in image]
            image = [colorsys.hsv_to_rgb((h + factors[3]) % 1, s, v) for h, s, v in hsv]
    if to_grey:
        image = [[grey(rgb)] * 3 for rgb in image]
    return [(rgb[c] - mean[c]) / std[c] for rgb in image for c in range(3)]


def noise(seed, step, sample, length):
    return [z for i in range(math.ceil(length / 4)) for z in normals(seed, NOISE, step, sample, i)][
        :length
    ]


def initial_weights(name, shape, init, seed):
    """`init` is `uniform` (PyTorch's default: +-1/sqrt(fan_in)) or `normal` (Kaiming, fan out)."""
    count, sample = math.prod(shape), fnv1a(name)
    if init == "uniform":
        bound = 1 / math.sqrt(math.prod(shape[1:]))
        draws = (x for i in range(math.ceil(count / 4)) for x in uniforms(seed, INIT, 0, sample, i))
        return [(2 * x - 1) * bound for _, x in zip(range(count), draws)]
    deviation = math.sqrt(2 / (shape[0] * math.prod(shape[2:])))
    draws = (x for i in range(math.ceil(count / 4)) for x in normals(seed, INIT, 0, sample, i))
    return [x * deviation for _, x in zip(range(count), draws)]


def main():
    try:
        with open(sys.argv[1], encoding="utf-8") as file:
            dump = json.load(file)
    except (IndexError, OSError, ValueError) as error:
        print(f"{error}\n{__doc__.splitlines()[2].strip()}", file=sys.stderr)
        return 2
    seed, step, batch, side = (dump[key] for key in ("seed", "step", "batch", "image"))
    wrong = compared = 0

    def compare(what, want, got, tolerance):
        nonlocal wrong, compared
        if len(want) != len(got):
            wrong += 1
            print(f"{what}: {len(got)} numbers, expected {len(want)}")
            return
        for i, (w, g) in enumerate(zip(want, got)):
            compared += 1
            if not abs(w - g) <= tolerance * max(1, abs(w)):
                wrong += 1
                print(f"{what}, element {i}: {g}, expected {w}")

    images = dump["images"]
    split = permutation(images, seed, SPLIT, 0)
    train, val = split[: images - dump["held_out"]], split[images - dump["held_out"] :]
    compare("training images", train, dump["train"], 0)
    compare("held-out images", val, dump["val"], 0)
    per_epoch = len(train) // batch
    epoch, first = step // per_epoch, step % per_epoch * batch
    for e in (0, epoch):
        order = permutation(len(train), seed, ORDER, e)
        compare(f"order of epoch {e}", order, dump["order"][str(e)], 0)
    compare(
        "images of the step",
        [train[i] for i in order[first : first + batch]],
        dump["batch_images"],
        0,
    )

    for n in range(batch):
        row = augmentation(dump["recipe"], seed, step, n, side)
        compare(
            f"augmentation of sample {n}, box, flags and order",
            row[:12],
            dump["augmentation"][n][:12],
            0,
        )
        compare(
            f"augmentation of sample {n}, factors",
            row[12:],
            dump["augmentation"][n][12:],
            TOLERANCE,
        )
        pixels = dump["pixels"][n * side * side : (n + 1) * side * side]
        compare(
            f"view of sample {n}",
            view(row, pixels, side, dump["mean"], dump["std"]),
            dump["view"][n],
            VIEW_TOLERANCE,
        )
        compare(
            f"noise of sample {n}",
            noise(seed, step, n, dump["latent"]),
            dump["noise"][n],
            TOLERANCE,
        )
    for w in dump["weights"]:
        compare(
            w["name"],
            initial_weights(w["name"], w["shape"], w["init"], seed),
            w["values"],
            TOLERANCE,
        )

    print(f"{compared} numbers compared, {wrong} differ")
    return 1 if wrong or not compared else 0


if __name__ == "__main__":
    sys.exit(main())
