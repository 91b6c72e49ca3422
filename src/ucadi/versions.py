# SPDX-License-Identifier: Apache-2.0
"""Format numbers. A reader refuses a number that it does not know; a number is never reused."""

__all__ = ["CHECKPOINT_VERSION", "CONFIG_VERSION", "RECORD_VERSION", "WIRE_VERSION"]

WIRE_VERSION = 2
"""Messages between coordinator and sites."""

CHECKPOINT_VERSION = 1
"""Folders that hold a model: parameters and manifest."""

CONFIG_VERSION = 1
"""TOML files that a user writes."""

RECORD_VERSION = 1
"""The JSON record of one reading, and the loader report."""
