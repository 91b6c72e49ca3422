# SPDX-License-Identifier: Apache-2.0
"""Weighted averaging of updates from received bytes, against keeping all of them and averaging at the end.

The list-and-average peer is what federated frameworks usually do: collect every update, scale copies, add.
The float32 row shows what exact order-independence (float64 sums) costs.
"""

import numpy as np
from harness import arguments, interleave, report

from ucadi.federation.aggregation import PlaintextAccumulator, apply_total
from ucadi.federation.messages import GlobalModel, Update, Weighting
from ucadi.tensors import pack, unpack


def main() -> None:
    options = arguments(__doc__)
    sites, mib = (4, 4) if options.quick else (8, 25)
    rng = np.random.default_rng(0)
    size = mib * 2**18
    model = GlobalModel(0, {"w": rng.standard_normal(size, dtype=np.float32)})
    received = [bytes(pack({"w": rng.standard_normal(size, dtype=np.float32) * 1e-3})) for _ in range(sites)]
    weights = [float(10 + k) for k in range(sites)]

    def list_and_average() -> np.ndarray:
        updates = [unpack(body)[0]["w"] for body in received]
        scaled = [update * np.float32(weight) for update, weight in zip(updates, weights, strict=True)]
        mean: np.ndarray = model.parameters["w"] + np.sum(scaled, axis=0) / np.float32(sum(weights))
        return mean

    def streaming_float32() -> np.ndarray:
        total = np.zeros(size, np.float32)
        for body, weight in zip(received, weights, strict=True):
            update = unpack(body)[0]["w"]
            for low in range(0, size, 65_536):
                total[low : low + 65_536] += np.float32(weight) * update[low : low + 65_536]
        mean: np.ndarray = model.parameters["w"] + total / np.float32(sum(weights))
        return mean

    def with_ucadi() -> np.ndarray:
        accumulator = PlaintextAccumulator(model)
        for site, (body, weight) in enumerate(zip(received, weights, strict=True)):
            update = Update("run", 1, str(site), unpack(body)[0], int(weight), 1.0, 10)
            accumulator.check(update)
            accumulator.add(update)
        averaged: np.ndarray = apply_total(model, accumulator.open(), Weighting.NORMALIZED).parameters["w"]
        return averaged

    def copy_bytes() -> int:
        return sum(len(bytearray(body)) for body in received)

    difference = float(np.abs(with_ucadi() - list_and_average()).max())
    assert difference < 1e-5, difference
    results = interleave(
        {
            "list, scale, average": list_and_average,
            "streaming float32, no checks": streaming_float32,
            "ucadi streaming float64, checked": with_ucadi,
            "copying the bytes alone": copy_bytes,
        },
        rounds=5 if options.quick else 15,
    )
    report(options, f"aggregate, {sites} x {mib} MiB", {"max_difference": difference}, results)


if __name__ == "__main__":
    main()
