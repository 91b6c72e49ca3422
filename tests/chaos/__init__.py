# SPDX-License-Identifier: Apache-2.0
"""Real federations whose processes are killed and whose links are cut: ``python -m tests.chaos --help``."""
