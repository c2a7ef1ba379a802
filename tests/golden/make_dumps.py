"""Writes the golden files beside this script. No argument, no input: everything comes from the hash in `hashfill.py`.

    python tests/golden/make_dumps.py            (--search: look for well-conditioned inputs, see NETWORKS;
                                                  --half: half.safetensors alone)

What each file holds is in README.md; the numbers come from f64 arithmetic on f32-rounded inputs and are stored as f32.
"""

import json
import math
import pathlib
import platform
import sys

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
import torchvision.transforms.functional as T
from safetensors.numpy import save_file
from torch.overrides import TorchFunctionMode
from torchvision.transforms import InterpolationMode

from half import half
from hashfill import bits, fill, fill_parameter, sample_indices
from twin import (
    Model,
    adam,
    bits_per_dim,
    gaussian_log_likelihood,
    kl_to_standard_normal,
    log_weights,
    nt_xent,
    std_of,
    views,
)

HERE = pathlib.Path(__file__).parent
SAMPLES = 32  # of each gradient and running statistic too large to store
OUT_SAMPLES = 512  # of the reconstruction
MANIFEST = {
    "versions": {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
    },
    "files": {},
}


def save(name, tensors, about, **extra):
    tensors = {k: np.ascontiguousarray(v) for k, v in tensors.items()}
    save_file(tensors, HERE / name)
    MANIFEST["files"][name] = {"about": about, "bytes": (HERE / name).stat().st_size, **extra}
    print(f"{name:55} {(HERE / name).stat().st_size:8} bytes  {extra.get('f32_error', '')}")


def f32(t):
    return t.detach().to(torch.float64).numpy().astype(np.float32)


def put(out, prefix, name, tensor, limit=SAMPLES):
    """`prefix/name` whole if small, else `prefix.sample/name` = sampled elements, then L2 norm, then sum."""
    flat = tensor.detach().to(torch.float64).flatten().numpy()
    if flat.size <= limit:
        out[f"{prefix}/{name}"] = flat.astype(np.float32).reshape(tuple(tensor.shape))
        return
    picked = flat[sample_indices(name, flat.size, limit)]
    out[f"{prefix}.sample/{name}"] = np.concatenate(
        [picked, [np.linalg.norm(flat), flat.sum()]]
    ).astype(np.float32)


def hash_weights(model):
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                tensor.copy_(torch.from_numpy(fill_parameter(name, tuple(tensor.shape))))
    return model


# ---------------------------------------------------------------- whole networks


class ReluInputs(TorchFunctionMode):
    """Keeps the input of every ReLU."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.relu:
            self.seen.append(args[0].detach().to(torch.float64))
            return torch.relu(args[0])
        return func(*args, **(kwargs or {}))


def margin(case):
    """How far the nearest ReLU input is from 0, in units of its layer's f32 rounding error (rms).

    Below about 5, another order of summation can open or close a ReLU, which moves gradients by 1e-3 or more.
    """
    exact, single = network(torch.float64, case, True), network(torch.float32, case, True)
    return min(
        (e.abs().min() / (e - s).square().mean().sqrt()).item() for e, s in zip(exact, single)
    )


def network(dtype, case, forward_only=False):
    keys = ("method", "encoder", "decoder", "width", "latent", "image", "stem", "learn_log_scale")
    model = hash_weights(Model(**{k: case[k] for k in keys})).to(dtype)
    n, s = case["batch"], case["image"]
    suffix = case["input_suffix"]
    original = torch.from_numpy(fill("input.original" + suffix, (n, 3, s, s), 4.0)).to(dtype)
    views = 2 if model.decoder is None else 1
    view = torch.from_numpy(fill("input.view" + suffix, (views * n, 3, s, s), 4.0)).to(dtype)
    eps = torch.from_numpy(
        fill("input.eps" + suffix, (n, case["latent"]), 2.0 * math.sqrt(3.0))
    ).to(dtype)
    x = view if model.uses_view else original
    with torch.no_grad():
        h_eval = model.eval().encoder(x)
    model.train()
    with ReluInputs() as relus:
        out = {"h_eval": h_eval, **model(original, view, eps)}
    if forward_only:
        return relus.seen
    out["loss"].backward()
    grads = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    stats = {k: v for k, v in model.state_dict().items() if "running_" in k}
    return out, grads, stats


def relative(a, b):
    a, b = a.detach().to(torch.float64), b.detach().to(torch.float64)
    return ((a - b).abs().max() / b.abs().max().clamp_min(1e-30)).item()


def dead(name):
    """Gradients that are exactly 0 in exact arithmetic: a bias in front of a BatchNorm."""
    return name in ("projection.first_layer.0.bias", "projection.projection_head.0.bias")


# (method, encoder, image, stem, learn_log_scale, batch) and the suffix of the inputs' names, chosen
# by `--search` for its margin
NETWORKS = {
    ("ae", "resnet18", 32, "cifar", False, 4): 61,
    ("vae", "resnet18", 32, "cifar", False, 4): 169,
    ("aaae", "resnet18", 32, "cifar", False, 4): 6,
    ("aavae", "resnet18", 32, "cifar", False, 4): 51,
    ("aavae", "resnet18", 32, "cifar", True, 4): 51,
    ("aavae", "resnet34", 16, "cifar", False, 4): 0,
    ("aavae", "resnet50", 16, "cifar", False, 4): 4,
    ("aavae", "resnet18", 48, "stl", False, 4): 6,
    ("aavae", "resnet18", 96, "imagenet", False, 4): 23,
    ("simclr", "resnet18", 32, "cifar", False, 4): 29,
}
MARGIN = 10.0


def network_case(method, encoder, image, stem, learn_log_scale, batch, suffix):
    return {
        "method": method, "encoder": encoder, "decoder": encoder, "width": 8, "latent": 8, "batch": batch,
        "image": image, "stem": stem, "learn_log_scale": learn_log_scale, "input_suffix": f".{suffix}",
    }  # fmt: skip


def search(limit=40):
    """Prints, for each network, the first suffix with the wanted margin, or the best of `limit`."""
    for key in NETWORKS:
        best = (0.0, 0)
        for suffix in range(limit):
            best = max(best, (margin(network_case(*key, suffix)), suffix))
            if best[0] >= MARGIN:
                break
        print(key, best[1], round(best[0], 1), flush=True)


def network_file(key, suffix):
    case = network_case(*key, suffix)
    method, encoder, _, stem, learn_log_scale, _ = key
    clear = margin(case)
    assert (
        clear > MARGIN / 2
    ), f"{case}: a ReLU input only {clear} rounding errors from 0; run with --search"
    out, grads, stats = network(torch.float64, case)
    out32, grads32, stats32 = network(torch.float32, case)
    error = max(
        [relative(out32[k], out[k]) for k in out]
        + [relative(stats32[k], stats[k]) for k in stats]
        + [relative(grads32[k], grads[k]) for k in grads if not dead(k)]
    )
    assert error < 1e-4, f"{case}: f32 differs from f64 by {error}"
    tensors = {}
    for name, value in out.items():
        if name == "reconstruction":
            put(tensors, "out", name, value, OUT_SAMPLES)
        else:
            tensors[f"out/{name}"] = f32(value.reshape(-1) if value.dim() == 0 else value)
    for name, value in grads.items():
        put(tensors, "grad", name, torch.zeros_like(value) if dead(name) else value)
    for name, value in stats.items():
        put(tensors, "stat", name, value)
    parts = (
        [method, encoder, f"w{case['width']}"]
        + ([] if stem == "cifar" else [stem])
        + (["learned"] if learn_log_scale else [])
    )
    save(
        "network_" + "_".join(parts) + ".safetensors",
        tensors,
        "one forward and backward pass",
        case=case,
        f32_error=float(f"{error:.2e}"),
        relu_margin=round(clear, 1),
    )


# ---------------------------------------------------------------- measurements


def measures(dtype, case):
    model = (
        hash_weights(
            Model(
                **{k: case[k] for k in ("method", "encoder", "decoder", "width", "latent", "image")}
            )
        )
        .to(dtype)
        .eval()
    )
    n, s, k, latent = case["batch"], case["image"], case["samples"], case["latent"]
    image = lambda name: torch.from_numpy(fill(f"measure.{name}", (n, 3, s, s), 4.0)).to(
        dtype
    )  # noqa: E731
    noise = lambda name, *shape: torch.from_numpy(
        fill(f"measure.{name}", (n, *shape, latent), 2.0 * math.sqrt(3.0))
    ).to(
        dtype
    )  # noqa: E731
    original, view = image("original"), image("view")
    with torch.no_grad():
        out = model(original, view, noise("eps"))
        weights = log_weights(
            model, view if model.uses_view else original, original, noise("eps_samples", k)
        )
        log_px = torch.logsumexp(weights, 1) - math.log(k)
        cosine, kl = views(model, view, original, noise("eps"), noise("eps_original"))
    means = {
        "log_pxz": out["log_pxz"],
        "kl": out["kl"],
        "log_px": log_px,
        "view_cosine": cosine,
        "view_kl": kl,
    }
    means = {name: value.mean().reshape(1) for name, value in means.items()}
    means["elbo"] = means["log_pxz"] - means["kl"]
    for of, bits in [("log_px", "bits_per_dim"), ("elbo", "bits_per_dim_elbo")]:
        means[bits] = bits_per_dim(means[of], s, case["std"])
    return {"log_weights": weights, **means}


def measures_file():
    for method in ("vae", "aavae"):
        case = {
            "method": method, "encoder": "resnet18", "decoder": "resnet18", "width": 8, "latent": 8, "batch": 3, "image": 16,
            "samples": 5, "std": [0.25, 0.24, 0.26],
        }  # fmt: skip
        exact, single = measures(torch.float64, case), measures(torch.float32, case)
        error = max(relative(single[k], exact[k]) for k in exact)
        tensors = {name: value.to(torch.float64).numpy() for name, value in exact.items()}
        save(
            f"measure_{method}.safetensors",
            tensors,
            "likelihoods and comparisons of views, in evaluation mode",
            case=case,
            f32_error=float(f"{error:.2e}"),
        )


# ---------------------------------------------------------------- images


def images(n):
    """u8 [n, 3, 32, 32]: smooth colour, a rectangle, a little noise. Image 2 also has patches of pure and equal channels."""
    ys, xs = np.mgrid[0:32, 0:32]
    out = np.zeros((n, 3, 32, 32), np.uint8)
    for k in range(n):
        grid = fill(f"image.{k}.grid", (3, 4, 4)).astype(np.float64) + 0.5
        pos = np.clip((np.arange(32) + 0.5) / 8 - 0.5, 0, 3)
        lo = np.minimum(pos.astype(int), 2)
        t = pos - lo
        rows = grid[:, lo] * (1 - t)[None, :, None] + grid[:, lo + 1] * t[None, :, None]
        img = rows[:, :, lo] * (1 - t) + rows[:, :, lo + 1] * t
        p = fill(f"image.{k}.box", (7,)).astype(np.float64) + 0.5
        top, left, high, wide = p[0] * 20, p[1] * 20, 6 + p[2] * 12, 6 + p[3] * 12
        inside = (ys >= top) & (ys < top + high) & (xs >= left) & (xs < left + wide)
        img = np.where(inside, p[4:7, None, None], img)
        img = img + 0.08 * fill(f"image.{k}.noise", (3, 32, 32)).astype(np.float64)
        out[k] = np.rint(np.clip(img, 0, 1) * 255).astype(np.uint8)
    colours = [
        (0, 0, 0),
        (255, 255, 255),
        (128, 128, 128),
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
        (255, 255, 0),
        (0, 255, 255),
        (255, 0, 255),
        (1, 0, 0),
        (254, 255, 255),
        (90, 90, 91),
    ]
    for j, rgb in enumerate(colours):
        y, x = 4 * (j // 4), 4 * (j % 4)
        out[2, :, y : y + 4, x : x + 4] = np.array(rgb, np.uint8)[:, None, None]
    return out


# ---------------------------------------------------------------- training curves

MEAN = torch.tensor([125.3, 123.0, 113.9], dtype=torch.float64).view(3, 1, 1) / 255
STD = torch.tensor([63.0, 62.1, 66.7], dtype=torch.float64).view(3, 1, 1) / 255


def normalise(u8):
    return (torch.from_numpy(u8).to(torch.float64) / 255 - MEAN) / STD


DECODER_SCALE = 0.5  # a decoder that starts near 0, as PyTorch's own initialisation does: rounding grows more slowly


def curve(
    dtype,
    method,
    u8,
    steps,
    lr,
    latent,
    channels_last=False,
    optimizer=adam,
    weights=None,
    change=lambda model: model,
    gradients=None,
):
    model = hash_weights(Model(method, width=8, latent=latent))
    if model.decoder is not None:
        with torch.no_grad():
            for p in model.decoder.parameters():
                p.mul_(DECODER_SCALE)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = change(model.to(dtype).to(memory_format=layout).train())
    if model.samples:
        model.log_scale.data.zero_()
    x = normalise(u8).to(torch.float32).to(dtype).contiguous(memory_format=layout)
    view = (
        torch.cat([x, x.flip(3)]).contiguous(memory_format=layout) if model.decoder is None else x
    )
    opt = optimizer(model, lr)
    losses = []
    for step in range(steps):
        eps = torch.from_numpy(fill(f"eps.{step}", (len(x), latent), 2.0 * math.sqrt(3.0))).to(
            dtype
        )
        opt.zero_grad()
        loss = model(x, view, eps)["loss"]
        loss.backward()
        if gradients is not None and step == 0:
            gradients.update(
                {k: p.grad.clone() for k, p in model.named_parameters() if p.requires_grad}
            )
        opt.step()
        losses.append(loss.item())
    if weights is not None:
        weights.update({k: p.detach() for k, p in model.named_parameters()})
    return np.array(losses)


def curves(u8):
    tensors, errors, case = {}, {}, {}
    for method, steps in [("ae", 20), ("aavae", 10), ("simclr", 10)]:
        settings = {"steps": steps, "lr": 5e-4, "latent": 128}
        exact = curve(torch.float64, method, u8, **settings)
        single = curve(torch.float32, method, u8, **settings)
        tensors[f"{method}/loss"], tensors[f"{method}/loss_f32"] = exact, single
        other = curve(
            torch.float32, method, u8, **settings, channels_last=True
        )  # another order of summation
        errors[method] = float(
            f"{max(np.max(np.abs(single / exact - 1)), np.max(np.abs(other / exact - 1))):.2e}"
        )
        assert errors[method] < 2e-4, errors
        case[method] = {
            "encoder": "resnet18",
            "decoder": "resnet18",
            "width": 8,
            "batch": 16,
            "image": 32,
            "log_scale": 0.0,
            "beta": 0.0,
            "decoder_scale": DECODER_SCALE,
            **settings,
        }
        print(method, np.round(exact, 5).tolist())
    save(
        "curve.safetensors",
        tensors,
        "loss of each step of training on the 16 images of images.safetensors",
        case=case,
        f32_error=errors,
    )


# Where PyTorch's own sums in f32 and f64 give nearly the same: further back a ReLU that one of them closes and the other
# does not moves a tenth of the gradient.
HALF_GRADIENTS = [
    "decoder.layer4.0.conv1.weight",
    "decoder.final_conv.bias",
]


def apart(a, b):
    """Largest distance of gradients that `put` stores, relative to the largest element of its tensor."""
    kept = [k for k in HALF_GRADIENTS if k in b]
    return max((float((a[k] - b[k]).abs().max() / b[k].abs().max()) for k in kept), default=0.0)


def halves(u8, **extra):
    settings = {"steps": 20, "lr": 5e-4, "latent": 128}
    tensors, errors = {}, {}
    for name, dtype, scale in [("f16", torch.float16, 65536.0), ("bf16", torch.bfloat16, 1.0)]:
        for method in ["ae", "vae", "aaae", "aavae", "simclr"]:

            def run(arithmetic, order=torch.contiguous_format, threads=1):
                torch.set_num_threads(threads)
                gradients = {}
                change = lambda model: half(model, dtype, scale).to(memory_format=order)
                losses = curve(arithmetic, method, u8, **settings, change=change, gradients=gradients)
                return losses, gradients

            exact, gradients = run(torch.float64)
            tensors[f"{name}/{method}/loss"] = exact
            for key in HALF_GRADIENTS:
                if key in gradients:
                    put(tensors, f"{name}/{method}/grad", key, gradients[key])
            # Which sums are rounded to another neighbour depends on their order: the largest of three.
            orders = [(torch.contiguous_format, 1), (torch.contiguous_format, 2), (torch.channels_last, 1)]
            singles = [run(torch.float32, *order) for order in orders]
            largest = lambda distance: float(f"{max(distance(*single) for single in singles):.2e}")
            errors[f"{name}/{method}"] = {
                "first": largest(lambda losses, _: abs(losses[0] / exact[0] - 1)),
                "losses": largest(lambda losses, _: np.max(np.abs(losses / exact - 1))),
                "gradients": largest(lambda _, other: apart(other, gradients)),
            }
            print(name, method, errors[f"{name}/{method}"], flush=True)
    torch.set_num_threads(2)
    save(
        "half.safetensors",
        tensors,
        "20 steps of curve's training with the casts of half.py, and gradients of the first",
        f32_error=errors,
        **extra,
    )


def groups(model, weight_decay, exclude=True):
    """Parameters with and without weight decay: one-dimensional tensors have none."""
    trained = [p for p in model.parameters() if p.requires_grad]
    plain = [p for p in trained if p.ndim == 1]
    return [
        {"params": [p for p in trained if p.ndim > 1]},
        {"params": plain, **({"weight_decay": 0.0, "plain": True} if exclude else {})},
    ]


class Layerwise(torch.optim.Optimizer):
    """A rate for each tensor: `ratio`, which is 1 for plain tensors and where a norm is 0."""

    def ratio(self, group, p, x, of):
        p, x = torch.linalg.vector_norm(p), torch.linalg.vector_norm(x)
        return 1.0 if group["plain"] or p == 0 or x == 0 else of(p, x)

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                self.update(group, p, p.grad, self.state[p])


class Lars(Layerwise):
    def __init__(self, params, lr, weight_decay, momentum=0.9, trust=1e-3, eps=1e-8):
        super().__init__(
            params,
            {
                "lr": lr,
                "weight_decay": weight_decay,
                "momentum": momentum,
                "trust": trust,
                "eps": eps,
                "plain": False,
            },
        )

    def update(self, group, p, grad, state):
        ratio = self.ratio(
            group,
            p,
            grad,
            lambda p, g: group["trust"] * p / (g + group["weight_decay"] * p + group["eps"]),
        )
        buffer = group["momentum"] * state.get("b", 0.0) + ratio * (
            grad + group["weight_decay"] * p
        )
        state["b"] = buffer
        p.sub_(group["lr"] * buffer)


class Lamb(Layerwise):
    def __init__(self, params, lr, weight_decay, betas=(0.9, 0.999), eps=1e-6):
        super().__init__(
            params,
            {"lr": lr, "weight_decay": weight_decay, "betas": betas, "eps": eps, "plain": False},
        )

    def update(self, group, p, grad, state):
        t, (beta1, beta2) = state.get("t", 0) + 1, group["betas"]
        state["t"] = t
        state["m"] = beta1 * state.get("m", 0.0) + (1 - beta1) * grad
        state["v"] = beta2 * state.get("v", 0.0) + (1 - beta2) * grad**2
        u = (
            state["m"] / (1 - beta1**t) / ((state["v"] / (1 - beta2**t)).sqrt() + group["eps"])
            + group["weight_decay"] * p
        )
        p.sub_(group["lr"] * self.ratio(group, p, u, lambda p, u: p / u) * u)


# Method, steps, make, rate, decay: each of them moves the weights far; from SimCLR's sixth step on
# rounding does, too.
OPTIMIZERS = {
    "adam": (
        "ae",
        10,
        lambda p, **k: torch.optim.Adam(p, betas=(0.9, 0.999), eps=1e-8, **k),
        5e-4,
        0.1,
    ),
    "sgd": ("ae", 10, lambda p, **k: torch.optim.SGD(p, momentum=0.9, **k), 0.05, 0.1),
    "lars": ("ae", 10, Lars, 1.0, 0.05),
    "lamb": ("ae", 10, Lamb, 1e-3, 1.0),
    "lars_simclr": ("simclr", 5, Lars, 0.02, 0.05),
}
# Tensors that are kept after the last step: convolutions, linear layers, BatchNorm's parameters and
# biases.
KEPT = ["encoder.conv1.weight", "encoder.bn1.weight", "encoder.bn1.bias", "encoder.layer2.0.conv1.weight", "encoder.layer4.1.bn2.weight",
        "projection.projection_head.3.weight", "decoder.linear_projection1.weight", "decoder.linear_projection1.bias", "decoder.layer1.0.conv1.weight",
        "decoder.final_conv.weight", "decoder.final_conv.bias"]  # fmt: skip


def optimizers(u8):
    """The autoencoder under each optimiser with weight decay, and SimCLR under LARS: losses, and weights after the last step."""
    tensors, errors, case = {}, {}, {}
    for name, (method, steps, make, lr, weight_decay) in OPTIMIZERS.items():
        settings = {"steps": steps, "lr": lr, "latent": 128}

        def run(dtype, decay=weight_decay, exclude=True, **more):
            weights = {}
            rule = lambda model, lr: make(
                groups(model, decay, exclude), lr=lr, weight_decay=decay
            )  # noqa: E731
            losses = curve(dtype, method, u8, **settings, optimizer=rule, weights=weights, **more)
            return losses, {k: weights[k] for k in KEPT if k in weights}

        def differ(a, b):
            return np.array(
                [np.max(np.abs(a[0] / b[0] - 1)), max(relative(a[1][k], b[1][k]) for k in b[1])]
            )

        exact = run(torch.float64)
        error = np.maximum(
            differ(run(torch.float32), exact), differ(run(torch.float32, channels_last=True), exact)
        )
        # No decay, or one of every tensor, must show in the weights.
        seen = [
            differ(run(torch.float64, **wrong), exact)[1]
            for wrong in ({"decay": 0.0}, {"exclude": False})
        ]
        print(
            name,
            np.round(exact[0], 5).tolist(),
            f"f32 {error}, decay {seen[0]:.1e}, exclusion {seen[1]:.1e}",
        )
        assert error[0] < 2e-4 and error[1] < 3.5e-3 and min(seen) > 1e-2, (name, error, seen)
        tensors[f"{name}/loss"], errors[name] = exact[0], [float(f"{e:.2e}") for e in error]
        for key, value in exact[1].items():
            put(tensors, f"{name}/weight", key, value)
        case[name] = {
            "method": method,
            "optimizer": name.split("_")[0],
            "encoder": "resnet18",
            "decoder": "resnet18",
            "width": 8,
            "batch": 16,
            "image": 32,
            "decoder_scale": DECODER_SCALE,
            "weight_decay": weight_decay,
            **settings,
        }
    save(
        "optimizers.safetensors",
        tensors,
        "steps of the autoencoder (SimCLR) with weight decay: losses, and weights after the last",
        case=case,
        f32_error=errors,
    )


# ---------------------------------------------------------------- augmentation


def augment(u8):
    tensors, cases = {}, []
    whole = torch.from_numpy(u8[:3]).to(torch.float64) / 255

    def add(name, op, image, result, store, tile=1, **params):
        result = result.to(torch.float64).numpy()
        if store == "u8":
            stored = np.rint(result * 255).astype(np.uint8)
            assert np.abs(stored / 255 - result).max() < 1e-9
        elif store.startswith("f32"):
            stored = result.astype(np.float32)
        else:
            assert -1e-9 <= result.min() and result.max() <= 1 + 1e-9, (
                name,
                result.min(),
                result.max(),
            )
            stored = np.rint(np.clip(result, 0, 1) * 65535).astype(np.uint16)
            if store == "u16.even":
                stored = stored[:, ::2, ::2]
        if store.endswith(".third"):
            stored = stored[:, ::3, ::3]
        tensors[name] = stored
        cases.append(
            {"name": name, "op": op, "image": image, "tile": tile, "store": store, **params}
        )

    boxes = [
        (1, (0, 0, 32, 32)),
        (1, (5, 3, 17, 22)),
        (1, (23, 21, 9, 9)),
        (1, (1, 2, 30, 27)),
        (3, (0, 0, 96, 96)),
        (3, (7, 11, 61, 80)),
        (3, (3, 0, 40, 33)),
        (3, (50, 60, 20, 36)),
    ]
    for j, (tile, (top, left, height, width)) in enumerate(boxes):
        x = whole[1].repeat(1, tile, tile)
        y = T.resized_crop(
            x, top, left, height, width, [32, 32], InterpolationMode.BILINEAR, antialias=True
        )
        add(
            f"resized_crop.{j}",
            "resized_crop",
            1,
            y,
            "u16",
            tile,
            top=top,
            left=left,
            height=height,
            width=width,
        )
    add("hflip", "hflip", 1, T.hflip(whole[1]), "u8")
    add("grayscale", "grayscale", 2, T.rgb_to_grayscale(whole[2], 3), "u16.even")
    adjust = {
        "brightness": T.adjust_brightness,
        "contrast": T.adjust_contrast,
        "saturation": T.adjust_saturation,
        "hue": T.adjust_hue,
    }
    for op, factors in {
        "brightness": [0, 0.2, 0.6, 1.4, 1.8],
        "contrast": [0, 0.2, 0.6, 1.4, 1.8],
        "saturation": [0, 0.2, 0.6, 1.4, 1.8],
        "hue": [-0.5, -0.2, -0.1, 0.03, 0.1, 0.2, 0.5],
    }.items():
        for j, factor in enumerate(factors):
            image = 2 if j % 2 == 0 or op == "hue" else 1
            add(f"{op}.{j}", op, image, adjust[op](whole[image], factor), "u16.even", factor=factor)
    chains = [
        (1, [("brightness", 1.3), ("contrast", 0.7), ("saturation", 1.35), ("hue", 0.07)]),
        (1, [("hue", 0.07), ("saturation", 1.35), ("contrast", 0.7), ("brightness", 1.3)]),
        (2, [("contrast", 1.8), ("hue", -0.2), ("brightness", 0.3), ("saturation", 0.2)]),
        (2, [("saturation", 1.8), ("brightness", 1.7), ("hue", 0.2), ("contrast", 0.25)]),
    ]
    for j, (image, chain) in enumerate(chains):
        y = whole[image]
        for op, factor in chain:
            y = adjust[op](y, factor)
        add(
            f"jitter.{j}",
            "jitter",
            image,
            y,
            "u16.even",
            chain=[{"op": op, "factor": factor} for op, factor in chain],
        )
    for kernel, sigma in [(3, 0.1), (3, 0.7), (3, 2.0), (9, 0.1), (9, 0.7), (9, 2.0)]:
        y = T.gaussian_blur(whole[1], [kernel, kernel], [sigma, sigma])
        add(
            f"blur.k{kernel}.s{sigma}",
            "gaussian_blur",
            1,
            y,
            "u16.even" if sigma == 0.1 else "u16",
            kernel=kernel,
            sigma=sigma,
        )
    padded = F.pad(whole[1:2], [4, 4, 4, 4], mode="reflect")[0]
    for j, (top, left) in enumerate([(0, 0), (4, 4), (8, 1), (3, 8)]):
        add(
            f"pad_crop.{j}",
            "pad_crop",
            1,
            T.crop(padded, top, left, 32, 32),
            "u8",
            pad=4,
            top=top,
            left=left,
        )
    y = T.normalize(whole[0], MEAN.flatten().tolist(), STD.flatten().tolist())
    add(
        "normalise",
        "normalise",
        0,
        y[:, ::2, ::2],
        "f32",
        mean=MEAN.flatten().tolist(),
        std=STD.flatten().tolist(),
    )
    cases[-1]["store"] = "f32.even"
    full = T.resized_crop(
        whole[1], 2, 6, 21, 19, [32, 32], InterpolationMode.BILINEAR, antialias=True
    )
    full = T.hflip(full)
    for op, factor in chains[0][1]:
        full = adjust[op](full, factor)
    full = T.normalize(
        T.gaussian_blur(full, [3, 3], [0.9, 0.9]), MEAN.flatten().tolist(), STD.flatten().tolist()
    )
    add("pipeline", "pipeline", 1, full, "f32", top=2, left=6, height=21, width=19, flip=True,
        chain=[{"op": op, "factor": factor} for op, factor in chains[0][1]], grayscale=False, kernel=3, sigma=0.9,
        mean=MEAN.flatten().tolist(), std=STD.flatten().tolist())  # fmt: skip
    # STL-10: 96 x 96, strength 1, a blur with a kernel of 9; the test images of the linear probe.
    stl = dict(mean=[0.43, 0.42, 0.39], std=[0.27, 0.26, 0.27])
    tiled = whole[2].repeat(1, 3, 3)
    chain = [("saturation", 1.7), ("hue", -0.15), ("contrast", 0.4), ("brightness", 1.2)]
    full = T.hflip(
        T.resized_crop(tiled, 9, 17, 62, 71, [96, 96], InterpolationMode.BILINEAR, antialias=True)
    )
    for op, factor in chain:
        full = adjust[op](full, factor)
    full = T.normalize(T.gaussian_blur(full, [9, 9], [1.3, 1.3]), **stl)
    add("stl.pretrain", "pipeline", 2, full, "f32.third", 3, side=96, top=9, left=17, height=62, width=71, flip=True,
        chain=[{"op": op, "factor": factor} for op, factor in chain], grayscale=False, kernel=9, sigma=1.3, **stl)  # fmt: skip
    y = T.center_crop(T.resize(tiled, [105], InterpolationMode.BILINEAR, antialias=True), [96])
    add(
        "stl.test",
        "resize_center",
        2,
        T.normalize(y, **stl),
        "f32.third",
        3,
        side=96,
        full=105,
        **stl,
    )
    (HERE / "augment.json").write_text(
        json.dumps({"cases": cases}, indent=None).replace('{"name"', '\n{"name"') + "\n"
    )
    save(
        "augment.safetensors",
        tensors,
        "torchvision's result of each case of augment.json, on images.safetensors",
    )


# ---------------------------------------------------------------- layers


class Layers:
    """Collects cases: `inputs` filled by the hash (name `<case>.<tensor>`), `stored` inputs, and outputs."""

    def __init__(self):
        self.cases, self.tensors = [], {}

    def case(self, name, op, inputs, stored=None, **params):
        got = {
            k: torch.from_numpy(fill(f"{name}.{k}", tuple(shape), scale, offset)).to(torch.float64)
            for k, (shape, scale, offset) in inputs.items()
        }
        for k, v in (stored or {}).items():
            self.tensors[f"{name}/{k}"] = v
            got[k] = torch.from_numpy(v)
            if got[k].is_floating_point():
                got[k] = got[k].to(torch.float64)
        for k in got:
            if got[k].is_floating_point():
                got[k].requires_grad_(True)
        self.cases.append({
            "name": name, "op": op, **params,
            "inputs": {k: {"shape": list(s), "scale": c, "offset": o} for k, (s, c, o) in inputs.items()},
            "stored": sorted(stored or {}),
        })  # fmt: skip
        return got

    def put(self, name, **outputs):
        for k, v in outputs.items():
            self.tensors[f"{name}/{k}"] = (
                v.astype(np.float32) if isinstance(v, np.ndarray) else f32(v)
            )
        self.cases[-1]["outputs"] = sorted(self.cases[-1].get("outputs", []) + list(outputs))


def layers():
    L = Layers()
    X = lambda *shape: (shape, 2.0, 0.0)  # noqa: E731

    convs = [
        ("conv1x1", 2, 4, 8, 5, 7, 1, 1, 0, False), ("conv1x1_s2", 2, 8, 4, 7, 5, 1, 2, 0, False), ("conv3x3", 2, 4, 4, 6, 5, 3, 1, 1, True),
        ("conv3x3_s2", 2, 4, 8, 7, 6, 3, 2, 1, False), ("conv3x3_1px", 3, 8, 4, 1, 1, 3, 1, 1, True), ("conv3x3_rgb", 2, 3, 4, 5, 5, 3, 1, 1, False),
        ("conv7x7_s2", 1, 3, 4, 11, 9, 7, 2, 3, False), ("conv7x7", 1, 4, 4, 5, 5, 7, 1, 3, True),
    ]  # fmt: skip
    for name, n, cin, cout, h, w, k, stride, pad, bias in convs:
        oh, ow = (h + 2 * pad - k) // stride + 1, (w + 2 * pad - k) // stride + 1
        inputs = {"x": X(n, cin, h, w), "weight": X(cout, cin, k, k), "dy": X(n, cout, oh, ow)}
        if bias:
            inputs["bias"] = X(cout)
        t = L.case(name, "conv2d", inputs, stride=stride, padding=pad)
        y = F.conv2d(t["x"], t["weight"], t.get("bias"), stride, pad)
        y.backward(t["dy"].detach())
        L.put(
            name,
            y=y,
            dx=t["x"].grad,
            dweight=t["weight"].grad,
            **({"dbias": t["bias"].grad} if bias else {}),
        )

    t = L.case("linear", "linear", {"x": X(5, 12), "weight": X(8, 12), "bias": X(8), "dy": X(5, 8)})
    y = F.linear(t["x"], t["weight"], t["bias"])
    y.backward(t["dy"].detach())
    L.put("linear", y=y, dx=t["x"].grad, dweight=t["weight"].grad, dbias=t["bias"].grad)

    # `offset` large against `scale`: cancellation. A constant channel: variance 0.
    for name, shape, offset, constant in [
        ("bn2d", (3, 4, 5, 3), 0.0, False),
        ("bn2d_offset", (2, 4, 4, 4), 100.0, False),
        ("bn2d_constant", (2, 4, 3, 3), 0.0, True),
        ("bn1d", (7, 8), 0.0, False),
        ("bn1d_pair", (2, 8), 0.0, False),
    ]:
        c = shape[1]
        inputs = {
            "weight": ((c,), 0.2, 1.0),
            "bias": ((c,), 0.2, 0.0),
            "running_mean": ((c,), 0.1, 0.0),
            "running_var": ((c,), 0.2, 1.0),
            "dy": X(*shape),
        }
        stored = None
        if constant:
            x = fill(f"{name}.x", shape, 2.0)
            x[:, 1] = 0.75
            stored = {"x": x}
        else:
            inputs["x"] = (shape, 2.0, offset)
        t = L.case(name, "batch_norm", inputs, stored, eps=1e-5, momentum=0.1)
        mean, var = t["running_mean"].detach().clone(), t["running_var"].detach().clone()
        y_eval = F.batch_norm(t["x"], mean, var, t["weight"], t["bias"], False, 0.1, 1e-5)
        y = F.batch_norm(t["x"], mean, var, t["weight"], t["bias"], True, 0.1, 1e-5)
        y.backward(t["dy"].detach())
        L.put(
            name,
            y=y,
            y_eval=y_eval,
            dx=t["x"].grad,
            dweight=t["weight"].grad,
            dbias=t["bias"].grad,
            running_mean_after=mean,
            running_var_after=var,
        )

    for name, h, w in [("max_pool", 7, 6), ("max_pool_even", 4, 4)]:
        x = np.round(fill(f"{name}.x", (2, 4, h, w), 4.0)).astype(
            np.float32
        )  # integers in -2..2: many ties, the first in row-major order wins
        oh, ow = (h - 1) // 2 + 1, (w - 1) // 2 + 1
        t = L.case(
            name, "max_pool", {"dy": X(2, 4, oh, ow)}, {"x": x}, kernel=3, stride=2, padding=1
        )
        y = F.max_pool2d(t["x"], 3, 2, 1)
        y.backward(t["dy"].detach())
        L.put(name, y=y, dx=t["x"].grad)

    t = L.case("global_avg_pool", "global_avg_pool", {"x": X(2, 4, 5, 3), "dy": X(2, 4)})
    y = t["x"].mean((2, 3))
    y.backward(t["dy"].detach())
    L.put("global_avg_pool", y=y, dx=t["x"].grad)

    for h, w, oh, ow in [(3, 2, 7, 5), (2, 4, 5, 3), (4, 4, 6, 6), (4, 4, 3, 3), (3, 3, 6, 6)]:
        name = f"upsample_{h}x{w}_{oh}x{ow}"
        t = L.case(
            name, "upsample_nearest", {"x": X(2, 4, h, w), "dy": X(2, 4, oh, ow)}, size=[oh, ow]
        )
        y = F.interpolate(t["x"], size=(oh, ow), mode="nearest")
        y.backward(t["dy"].detach())
        L.put(name, y=y, dx=t["x"].grad)

    for name, scale in [("cross_entropy", 8.0), ("cross_entropy_extreme", 2e4)]:
        logits = fill(f"{name}.logits", (6, 10), scale)
        labels = (bits(f"{name}.labels", 6) % np.uint64(10)).astype(np.int64)
        if scale > 100:
            logits[0], logits[1], logits[2] = -1e4, 1e4, 0.0
            logits[3], labels[3] = -1e4, 4
            logits[3, 4] = 1e4
            logits[4], labels[4] = -1e4, 4
            logits[4, 7] = 1e4
        t = L.case(
            name, "cross_entropy", {}, {"logits": logits, "labels": labels}, reduction="mean"
        )
        per = F.cross_entropy(t["logits"], t["labels"], reduction="none")
        per.mean().backward()
        L.put(name, loss_per_example=per, loss=per.mean().reshape(1), dlogits=t["logits"].grad)

    # loss = mean over the batch of -log p
    for name, offset in [
        ("gaussian_nll", 0.3),
        ("gaussian_nll_narrow", -5.0),
        ("gaussian_nll_wide", 2.0),
    ]:
        t = L.case(
            name,
            "gaussian_nll",
            {"x_hat": X(3, 3, 4, 5), "x": X(3, 3, 4, 5), "log_scale": ((1,), 0.0, offset)},
        )
        log_p = gaussian_log_likelihood(t["x_hat"], t["x"], t["log_scale"])
        loss = -log_p.mean()
        loss.backward()
        L.put(
            name,
            log_pxz=log_p,
            loss=loss.reshape(1),
            dx_hat=t["x_hat"].grad,
            dlog_scale=t["log_scale"].grad,
        )

    # loss = mean over the batch of KL(N(mu, std) || N(0, 1)), std = exp(logvar / 2) + 1e-6
    for name, scale in [("kl", 4.0), ("kl_extreme", 60.0)]:
        t = L.case(name, "kl", {"mu": X(5, 8), "logvar": ((5, 8), scale, 0.0)})
        kl = kl_to_standard_normal(t["mu"], std_of(t["logvar"]))
        kl.mean().backward()
        L.put(name, kl=kl, loss=kl.mean().reshape(1), dmu=t["mu"].grad, dlogvar=t["logvar"].grad)

    t = L.case(
        "reparameterise",
        "reparameterise",
        {"mu": X(5, 8), "logvar": ((5, 8), 8.0, 0.0), "eps": X(5, 8), "dz": X(5, 8)},
    )
    z = t["mu"] + std_of(t["logvar"]) * t["eps"]
    z.backward(t["dz"].detach())
    L.put("reparameterise", z=z, dmu=t["mu"].grad, dlogvar=t["logvar"].grad)

    t = L.case("mse", "mse", {"x_hat": X(3, 3, 4, 5), "x": X(3, 3, 4, 5)})
    loss = F.mse_loss(t["x_hat"], t["x"])
    loss.backward()
    L.put("mse", loss=loss.reshape(1), dx_hat=t["x_hat"].grad)

    t = L.case("cosine_similarity", "cosine_similarity", {"a": X(5, 12), "b": X(5, 12)})
    L.put("cosine_similarity", y=F.cosine_similarity(t["a"], t["b"], dim=1))

    # Rows b and n + b are a pair. The last number: all rows are distinct (0), one and the same (1:
    # the gradient is 0 in exact arithmetic), or every third is row 0.
    cases = [
        ("t0.07", 10, 12, 0.07, 0),
        ("t0.5", 14, 36, 0.5, 0),
        ("t1", 6, 8, 1.0, 0),
        ("t0.001", 10, 12, 0.001, 0),
    ]
    cases += [
        ("identical_t0.07", 10, 12, 0.07, 1),
        ("identical_t1", 8, 12, 1.0, 1),
        ("twins_t0.07", 12, 8, 0.07, 3),
    ]
    for case, views, c, temperature, every in cases:
        name, attributes = f"nt_xent_{case}", {"shape": [views, c], "temperature": temperature}
        if every == 0:
            t = L.case(name, "nt_xent", {"z": X(views, c)}, **attributes)
        else:
            z = fill(f"{name}.z", (views, c), 2.0)
            z[::every] = z[0]
            t = L.case(name, "nt_xent", {}, {"z": z}, **attributes)
        loss, accuracy = nt_xent(t["z"], temperature)
        loss.backward()
        dz = t["z"].grad
        L.put(name, loss=loss.reshape(1), dz=torch.zeros_like(dz) if every == 1 else dz)
        if every == 0:  # no ties
            L.put(name, accuracy=accuracy.reshape(1))

    # optimisers: gradient of step k is `grad.<k>`; element 0 has gradient 0 throughout, element 1 a
    # tiny one
    def optimiser(name, op, make, **params):
        stored = {}
        for k in range(3):
            g = fill(f"{name}.grad.{k}", (12,), 2.0)
            g[0], g[1] = 0.0, g[1] * 1e-8
            stored[f"grad.{k}"] = g
        t = L.case(name, op, {"w": X(12)}, stored, **params)
        w = torch.nn.Parameter(t["w"].detach().clone())
        opt, steps = make([w]), []
        for k in range(3):
            w.grad = t[f"grad.{k}"].detach().clone()
            opt.step()
            steps.append(w.detach().clone())
        L.put(name, w_after=torch.stack(steps))

    optimiser(
        "adam",
        "adam",
        lambda p: torch.optim.Adam(p, lr=1e-3),
        lr=1e-3,
        betas=[0.9, 0.999],
        eps=1e-8,
        weight_decay=0.0,
    )
    optimiser(
        "sgd_nesterov",
        "sgd_nesterov",
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
        lr=0.1,
        momentum=0.9,
        weight_decay=0.0,
    )

    w = torch.nn.Parameter(torch.zeros(1))
    opt = torch.optim.SGD([w], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 90)
    lrs = []
    for _ in range(91):
        lrs.append(opt.param_groups[0]["lr"])
        opt.step()
        schedule.step()
    L.case("cosine_schedule", "cosine_schedule", {}, lr=0.1, total=90)
    L.put("cosine_schedule", lr=np.array(lrs))

    (HERE / "layers.json").write_text(
        json.dumps({"cases": L.cases}).replace('{"name"', '\n{"name"') + "\n"
    )
    save("layers.safetensors", L.tensors, "each case of layers.json")


def main():
    torch.set_num_threads(2)
    if "--search" in sys.argv:
        return search()
    if "--half" in sys.argv:
        versions = MANIFEST["versions"]
        MANIFEST.update(json.loads((HERE / "manifest.json").read_text()))
        halves(images(16), versions=versions)
        return finish()
    for key, suffix in NETWORKS.items():
        network_file(key, suffix)
    measures_file()
    u8 = images(16)
    save("images.safetensors", {"images": u8}, "u8 [16, 3, 32, 32], made from the hash")
    curves(u8)
    halves(u8)
    optimizers(u8)
    augment(u8)
    layers()
    finish()


def finish():
    MANIFEST["hash_check"] = {
        "name": "encoder.conv1.weight",
        "bits_0_1": [f"{b:#018x}" for b in bits("encoder.conv1.weight", 2)],
        "value_f32_scale1": fill("encoder.conv1.weight", (4,)).tolist(),
    }
    (HERE / "manifest.json").write_text(json.dumps(MANIFEST, indent=1) + "\n")
    print("total", sum(f.stat().st_size for f in HERE.glob("*.safetensors")), "bytes")


if __name__ == "__main__":
    main()
