# SPDX-License-Identifier: Apache-2.0
"""The distributed engine: NVIDIA FLARE behind `ucadi.federation.ports.Transport`."""
