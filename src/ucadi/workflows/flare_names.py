# SPDX-License-Identifier: Apache-2.0
"""The two classes of ucadi that a FLARE job may name, as text: making a kit loads neither."""

from ucadi.engines.flare.settings import FlareApp

__all__ = ["APP"]

APP = FlareApp(
    controller="ucadi.workflows.flare_app.UcadiController",
    executor="ucadi.workflows.flare_app.UcadiExecutor",
)
"""The only classes that a kit lets a job build."""
