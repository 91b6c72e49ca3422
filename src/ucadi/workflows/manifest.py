# SPDX-License-Identifier: Apache-2.0
"""The run manifest: what is needed to do a run again, and nothing about the machine's owner."""

import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from ucadi import __version__

__all__ = ["run_manifest"]

_LIBRARIES = ("numpy", "scipy", "torch", "nvflare", "pydicom", "nibabel")


def run_manifest(*, config: Mapping[str, Any], seed: int, data_hashes: Mapping[str, str]) -> dict[str, Any]:
    """Return versions, time, seed, configuration and the hashes of the cohorts.

    Args:
        config: The resolved settings, without local paths.
        seed: The run's seed.
        data_hashes: Hash of each cohort's study table by site.
    """
    from ucadi.learning.precision import has_bf16

    return {
        "ucadi_version": __version__,
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in _LIBRARIES},
        "machine": platform.machine(),
        "precision": "bf16 autocast" if has_bf16() else "float32",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "config": dict(config),
        "data_hashes": dict(data_hashes),
    }
