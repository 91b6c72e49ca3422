# SPDX-License-Identifier: Apache-2.0
"""``python -m ucadi`` is the same as ``ucadi``."""

from ucadi.cli.launcher import run

if __name__ == "__main__":
    run()
