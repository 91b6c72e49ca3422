# SPDX-License-Identifier: Apache-2.0
"""The fixtures of a real coordinator and of sites' homes."""

from coordinator_hub import coordinator_template, hub, new_site, site, site_templates

__all__ = ["coordinator_template", "hub", "new_site", "site", "site_templates"]
