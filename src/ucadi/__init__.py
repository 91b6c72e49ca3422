# SPDX-License-Identifier: Apache-2.0
"""Hospitals train one chest-CT model together without sharing a scan, and read scans with it."""

__all__ = ["__version__"]

__version__ = "0.1.0"
