#!/usr/bin/env python3
"""Compares the event files of a run, as TensorBoard reads them, with its metrics.jsonl and its pictures.

usage: tests/events.py RUN          compares once; exits with 1 if they differ
       tests/events.py RUN --live   reads on in one go, as a TensorBoard does that is open all the while: for every line on
                                    stdin it reads what is new, compares, and prints "same" or what differs

Needs the package `tensorboard`, and nothing that it does not bring along.
"""

import json
import logging
import math
import pathlib
import struct
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

# It tells of every restart that it sees.
logging.getLogger("tensorboard").setLevel(logging.CRITICAL)


def f32(value):
    """The f32 that a line of metrics.jsonl stands for, as bytes; all NaN are one."""
    value = math.nan if value is None else value
    return b"nan" if math.isnan(value) else struct.pack("<f", value)


def logged(run):
    """Points of metrics.jsonl: steps and values by tag."""
    curves = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        step, split = record.pop("step"), record.pop("split")
        record.pop("epoch")
        for name, value in record.items():
            curves.setdefault(f"{split}/{name}", []).append((step, f32(value)))
    return curves


def differences(run, events):
    """What TensorBoard shows otherwise than the run's other files."""
    events.Reload()
    found, want, shown = [], logged(run), {}
    for tag in events.Tags()["scalars"]:
        points = events.Scalars(tag)
        if points:
            shown[tag] = [(p.step, f32(p.value)) for p in points]
        times = [p.wall_time for p in points]
        if times != sorted(times):
            found.append(f"{tag}: the times of its points fall: {times}")
    for tag in sorted(want.keys() | shown.keys()):
        if want.get(tag) != shown.get(tag):
            found.append(f"{tag}: logged {want.get(tag)}, shown {shown.get(tag)}")
    if not want:
        found.append("metrics.jsonl is empty")
    images = events.Images("reconstruction") if "reconstruction" in events.Tags()["images"] else []
    steps = [image.step for image in images]
    if steps != sorted(set(steps)) or not steps:
        found.append(f"pictures of steps {steps}")
    for image in images:
        path = run / f"images/reconstruction-{image.step:06}.png"
        if path.read_bytes() != image.encoded_image_string:
            found.append(f"the picture of step {image.step} is another one than {path.name}")
    return found


def main():
    run = pathlib.Path(sys.argv[1])
    # 0: keep every point.
    events = EventAccumulator(str(run), size_guidance={"scalars": 0, "images": 0})
    if sys.argv[2:] == ["--live"]:
        for _ in sys.stdin:
            found = differences(run, events)
            print("; ".join(found) or "same", flush=True)
        return
    found = differences(run, events)
    sys.exit("\n".join(found) if found else 0)


if __name__ == "__main__":
    main()
