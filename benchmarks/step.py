"""What a training step costs by precision and memory format, on this processor.

    python -m benchmarks.step [zoo:resnet18/16/128 ...] [--passes 3]

A case is NETWORK/BASE WIDTH/BATCH (0: the published width), random images of 32x32 pixels, one thread. Each combination
is measured in turns in one process; a figure is the least processor time of its forward and backward passes, in ms.
"""

from __future__ import annotations

import argparse
import time

import torch
import torch.nn.functional as F

from understudy.models import zoo
from understudy.training.compute import Compute

CASES = (
    "resnet18/16/128",
    "resnet18/4/128",
    "resnet18/64/32",
    "vgg13/0/32",
    "mobilenet_v2/0/128",
    "densenet40/0/32",
)
WAYS = {
    f"{name} {layout}": Compute(dtype=dtype, memory_format=memory_format)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
    for layout, memory_format in (("contiguous", torch.contiguous_format), ("channels_last", torch.channels_last))
}


def main() -> None:
    """Print a row for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=CASES, help="NETWORK/BASE WIDTH/BATCH")
    parser.add_argument("--passes", type=int, default=3, help="of which the least time counts")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'network, width, batch':26}" + "".join(f"{name:>20}" for name in WAYS))
    for case in options.cases:
        network, width, batch = case.removeprefix("zoo:").split("/")
        best = dict.fromkeys(WAYS, float("inf"))
        for _ in range(options.passes):
            for name, compute in WAYS.items():
                best[name] = min(best[name], seconds(network, int(width), int(batch), compute))
        print(f"{case:26}" + "".join(f"{1000 * best[name]:20.0f}" for name in WAYS), flush=True)


def seconds(network: str, width: int, batch: int, compute: Compute) -> float:
    """Return the processor seconds of a step after one that is not timed."""
    model = zoo.create(network, width=width or None).train()
    compute = compute.suited(model)
    compute.place(model)
    images = torch.randn(batch, 3, 32, 32).to(memory_format=compute.memory_format)
    labels = torch.randint(10, (batch,))
    with compute.scope():
        for _ in range(2):
            start = time.process_time()
            with compute.autocast():
                logits = model(images)
            F.cross_entropy(logits.float(), labels).backward()
    return time.process_time() - start


if __name__ == "__main__":
    main()
