# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys

import pytest

from ucadi.errors import EngineError
from ucadi.workflows.home_lock import only_one

HOLD = """
import sys, pathlib
from ucadi.workflows.home_lock import only_one
with only_one(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_home_is_run_by_one_process_until_that_ends_however_it_ends(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(EngineError) as caught, only_one(tmp_path):
            pass
        assert caught.value.code == "home-in-use"
        other.kill()
    with only_one(tmp_path):
        pass
