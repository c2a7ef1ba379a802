"""One AAVAE training step without augmentation in PyTorch eager: forward, backward, Adam, loss read back. Prints JSON.

    python tests/golden/bench_torch.py [--seconds 10] [--threads 2] [--width 16] [--batch 64]
"""

import argparse
import json
import statistics
import time

import torch

from twin import Model, adam


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--seconds", type=float, default=10.0)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--width", type=int, default=16)
    ap.add_argument("--batch", type=int, default=64)
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = Model("aavae", width=args.width).to(memory_format=torch.channels_last).train()
    opt = adam(model, 2.5e-4)
    original, view = (torch.randn(args.batch, 3, 32, 32).to(memory_format=torch.channels_last) for _ in range(2))

    def step():
        opt.zero_grad(set_to_none=True)
        loss = model(original, view, torch.randn(args.batch, 128))["loss"]
        loss.backward()
        opt.step()
        return loss.item()

    for _ in range(3):
        step()
    times, end = [], time.perf_counter() + args.seconds
    while time.perf_counter() < end or len(times) < 5:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    median = statistics.median(times)
    print(json.dumps({"images_per_second": args.batch / median, "step_ms_median": 1e3 * median, "n": len(times)}))


if __name__ == "__main__":
    main()
