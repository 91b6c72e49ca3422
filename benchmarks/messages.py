# SPDX-License-Identifier: Apache-2.0
"""Packing a model into bytes and reading it back, against torch.save and the safetensors library."""

import io

import numpy as np
import safetensors.numpy
import torch
from harness import arguments, interleave, report

from ucadi.tensors import pack, unpack


def main() -> None:
    options = arguments(__doc__)
    mib = 10 if options.quick else 100
    rng = np.random.default_rng(0)
    arrays = {f"layer{k}": rng.standard_normal((mib * 2**18 // 20,), dtype=np.float32) for k in range(20)}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}

    def with_torch() -> dict[str, torch.Tensor]:
        buffer = io.BytesIO()
        torch.save(tensors, buffer)
        buffer.seek(0)
        loaded: dict[str, torch.Tensor] = torch.load(buffer, weights_only=True)
        return loaded

    def with_safetensors() -> dict[str, np.ndarray]:
        return safetensors.numpy.load(safetensors.numpy.save(arrays))

    def with_ucadi() -> dict[str, np.ndarray]:
        return unpack(pack(arrays))[0]

    same = all(np.array_equal(with_ucadi()[name], with_torch()[name].numpy()) for name in arrays)
    assert same, "the round trips differ"
    results = interleave(
        {
            "torch.save + torch.load": with_torch,
            "safetensors": with_safetensors,
            "ucadi pack + unpack": with_ucadi,
        },
        rounds=5 if options.quick else 15,
    )
    report(options, f"messages, {mib} MiB", {"equal": same}, results)


if __name__ == "__main__":
    main()
