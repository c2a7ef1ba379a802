"""Times one AAVAE training step in PyTorch: the step that `aavae bench --step` times.

    python tests/golden/bench_torch.py [--device cuda] [--precision bf16] [--json] ...

Encoder and decoder, log-likelihood, KL, backward pass, Adam; random images, no augmentation. On the
CPU every step reads its loss back, as a training loop would; on CUDA steps wait for nothing and are
timed by events. The warm-up (cuDNN's search for algorithms, compilation) is not timed. f32 is
IEEE f32: TF32 is off. bf16 and f16 are autocast with f32 weights, f16 with a gradient scaler.
`--json` prints one line with the fields of `aavae bench --json`.
"""

import argparse
import contextlib
import json
import statistics
import time

import torch

from twin import ENCODER_BLOCKS, Model, adam

HALF = {"bf16": torch.bfloat16, "f16": torch.float16}
LEARNING_RATE = 1e-4
LATENT = 128


def arguments():
    raw = argparse.RawDescriptionHelpFormatter
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    depths = sorted(ENCODER_BLOCKS)
    ap.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    ap.add_argument("--precision", choices=["f32", "tf32", "bf16", "f16"], default="f32")
    ap.add_argument("--encoder", choices=depths, default="resnet18", help="and decoder")
    ap.add_argument("--width", type=int, default=16)
    ap.add_argument("--batch-size", "--batch", type=int, default=64)
    ap.add_argument("--channels-last", action=argparse.BooleanOptionalAction, default=True)
    ap.add_argument("--fused-adam", action="store_true")
    ap.add_argument("--compile", action="store_true", help="torch.compile of the model")
    ap.add_argument("--steps", type=int, help="timed (default: what --seconds gives, at least 5)")
    ap.add_argument("--seconds", type=float, default=10.0)
    ap.add_argument("--warm-up", type=int, help="steps before (default: 3 on cpu, 15 on cuda)")
    ap.add_argument("--threads", type=int, default=2, help="of the CPU")
    ap.add_argument("--json", action="store_true")
    args = ap.parse_args()
    if args.warm_up is None:
        args.warm_up = 15 if args.device == "cuda" else 3
    if min(args.batch_size, args.width, args.threads, args.warm_up, args.steps or 1) < 1:
        ap.error("sizes and counts are positive")
    if args.precision == "tf32" and args.device == "cpu":
        ap.error("TF32 is a mode of CUDA devices")
    if args.device == "cuda" and not torch.cuda.is_available():
        ap.exit(1, "error: this PyTorch finds no CUDA device\n")
    return args


def make_step(args):
    """The step, which returns its loss as a tensor on the device, and the number of parameters."""
    device = torch.device(args.device)
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    model = Model("aavae", args.encoder, args.encoder, width=args.width, latent=LATENT)
    model = model.to(device=device, memory_format=layout).train()
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    optimizer = adam(model, LEARNING_RATE, fused=args.fused_adam or None)
    run = torch.compile(model) if args.compile else model
    half = HALF.get(args.precision)
    scaler = torch.amp.GradScaler(args.device, enabled=args.precision == "f16")
    shape = (args.batch_size, 3, 32, 32)
    images = [torch.randn(shape, device=device).to(memory_format=layout) for _ in range(2)]

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(args.device, dtype=half) if half else contextlib.nullcontext():
            loss = run(*images, torch.randn(args.batch_size, LATENT, device=device))["loss"]
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss

    return step, parameters


def time_on_cpu(step, steps, seconds):
    """Seconds of each step; the loss of the last."""
    times, end = [], time.perf_counter() + seconds
    while len(times) < steps if steps else time.perf_counter() < end or len(times) < 5:
        start = time.perf_counter()
        loss = step().item()
        times.append(time.perf_counter() - start)
    return times, loss


def time_on_cuda(step, steps, seconds):
    """Seconds between the ends of steps that wait for nothing; the loss of the last."""

    def series(n):
        events = [torch.cuda.Event(enable_timing=True) for _ in range(n + 1)]
        torch.cuda.synchronize()
        events[0].record()
        for event in events[1:]:
            loss = step()
            event.record()
        torch.cuda.synchronize()
        return [a.elapsed_time(b) / 1e3 for a, b in zip(events, events[1:])], loss.item()

    if steps is None:
        steps = max(5, int(seconds / statistics.median(series(5)[0])))
    return series(steps)


def main():
    args = arguments()
    began = time.perf_counter()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    tf32 = args.precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True
    step, parameters = make_step(args)
    for _ in range(args.warm_up):
        step()
    on_cuda = args.device == "cuda"
    if on_cuda:
        torch.cuda.synchronize()
    ready = time.perf_counter() - began
    times, loss = (time_on_cuda if on_cuda else time_on_cpu)(step, args.steps, args.seconds)
    if not abs(loss) < float("inf"):
        raise SystemExit(f"error: the loss is {loss} after the last step")
    median = statistics.median(times)
    result = {
        "device": torch.cuda.get_device_name() if on_cuda else f"cpu, {args.threads} threads",
        "torch": torch.__version__,
        "cuda": torch.version.cuda if on_cuda else None,
        "cudnn": torch.backends.cudnn.version() if on_cuda else None,
        "method": "aavae",
        "encoder": args.encoder,
        "width": args.width,
        "batch_size": args.batch_size,
        "precision": args.precision,
        "channels_last": args.channels_last,
        "fused_adam": args.fused_adam,
        "compile": args.compile,
        "parameters": parameters,
        "loss": loss,
        "ready_seconds": ready,
        "step": {
            "n": len(times),
            "median_ms": 1e3 * median,
            "best_ms": 1e3 * min(times),
            "worst_ms": 1e3 * max(times),
            "images_per_second": args.batch_size / median,
            "allocated_bytes": torch.cuda.max_memory_allocated() if on_cuda else None,
        },
    }
    if args.json:
        print(json.dumps(result))
    else:
        s = result["step"]
        net = f"{args.encoder}, width {args.width}, batch {args.batch_size}, {args.precision}"
        spread = f"{s['best_ms']:.1f}..{s['worst_ms']:.1f}, n = {s['n']}"
        print(f"{result['device']}, {net}")
        rate = f"{s['images_per_second']:.1f} images/s"
        print(f"step: median {s['median_ms']:.1f} ms ({spread}), {rate}")


if __name__ == "__main__":
    main()
