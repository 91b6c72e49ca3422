# SPDX-License-Identifier: Apache-2.0
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def load_plain() -> Callable[[ModuleType], ModuleType]:
    """Loads a second copy of a module without the shape and type checks that tests add to the package.

    Those checks refuse wrong types at every call; in use nothing does so but the module itself.
    """

    def load(module: ModuleType) -> ModuleType:
        name = f"plain_{module.__name__.rpartition('.')[2]}"
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(name, module.__file__)
            sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
            spec.loader.exec_module(sys.modules[name])
        return sys.modules[name]

    return load
