# SPDX-License-Identifier: Apache-2.0
"""Makes `toy_app` importable here under the name by which the engine's processes import it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
