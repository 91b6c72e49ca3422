# SPDX-License-Identifier: Apache-2.0
"""The rules of the house: who imports whom, what every module has, what no file holds."""

import ast
import importlib.util
import re
import resource
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

from ucadi import errors
from ucadi.errors import CODES

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "ucadi"

# -- the import table -------------------------------------------------------------------------------------

BASE = {"errors", "types", "versions", "tensors", "logs"}
"""Everybody may import these, and ``__version__``."""

INSIDE: dict[str, set[str]] = {
    **{name: set() for name in BASE},
    "__init__": set(),
    "__main__": {"cli"},
    "imaging": set(),
    "phantom": {"imaging"},
    "io": {"imaging"},
    "deid": {"io"},
    "cohorts": {"deid", "imaging", "io"},
    "results": {"imaging", "io"},
    "pacs": {"io"},
    "models": set(),
    "learning": {"models", "imaging"},
    "federation": set(),
    "crypto": set(),
    "store": {"federation"},
    "enrolment": {"crypto", "store"},
    "engines": {"federation"},
    "config": {"federation.plans", "imaging.presets", "models.registry"},
    "reporting": {"imaging", "io"},
    "workflows": {
        "cohorts",
        "config",
        "crypto",
        "deid",
        "engines",
        "enrolment",
        "federation",
        "imaging",
        "io",
        "learning",
        "models",
        "pacs",
        "phantom",
        "reporting",
        "results",
        "store",
    },
    "cli": {"workflows", "config"},
}
"""Which parts of ucadi a part may import, besides the base and itself."""

OUTSIDE: dict[str, set[str]] = {
    **{name: {"jaxtyping"} for name in BASE},
    "tensors": {"numpy"},
    "__init__": set(),
    "__main__": set(),
    "imaging": {"numpy", "scipy", "jaxtyping"},
    "phantom": {"numpy", "scipy", "jaxtyping"},
    "io": {"gdcm", "jaxtyping", "nibabel", "numpy", "pydicom"},
    "deid": {"jaxtyping", "nibabel", "numpy", "pydicom"},
    "cohorts": {"jaxtyping", "numpy", "pydicom"},
    "results": {"highdicom", "jaxtyping", "numpy", "pydicom"},
    "pacs": {"dicomweb_client", "pydicom", "pynetdicom", "requests"},
    "models": {"torch", "numpy", "jaxtyping"},
    "learning": {"torch", "numpy", "scipy", "jaxtyping"},
    "federation": {"numpy", "jaxtyping"},
    "crypto": {"cryptography"},
    "store": {"sqlalchemy"},
    "enrolment": {"cryptography", "fastapi", "requests", "uvicorn"},
    "engines": {"nvflare", "cryptography", "psutil"},
    "config": {"pydantic"},
    "reporting": {
        "jaxtyping",
        "jinja2",
        "matplotlib",
        "mlflow",
        "numpy",
        "prometheus_client",
        "scipy",
        "tensorboard",
    },
    "workflows": {"numpy", "torch", "jaxtyping", "pydantic", "psutil"},
    "cli": {"typer", "rich"},
}
"""Which libraries a part may know, besides the standard one."""


@cache
def modules() -> dict[str, ast.Module]:
    """All modules by dotted name below ucadi."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imports_of(name: str) -> set[str]:
    """Dotted names that a module imports, at its top or inside functions."""
    found = set()
    for node in ast.walk(modules()[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = ["ucadi", *name.split(".")[: -node.level]]
                base = ".".join([*parts, base] if base else parts)
            if base == "ucadi":
                found |= {f"ucadi.{alias.name}" for alias in node.names}
            else:
                found.add(base)
    return found


def part_of(name: str) -> str:
    return name.split(".")[0]


def test_every_part_is_in_the_table():
    assert {part_of(name) for name in modules()} == INSIDE.keys() == OUTSIDE.keys()


@pytest.mark.parametrize("name", modules())
def test_a_module_imports_only_what_its_part_may(name):
    part = part_of(name)
    for imported in imports_of(name):
        if part_of(imported) != "ucadi":
            library = part_of(imported)
            assert library in sys.stdlib_module_names | OUTSIDE[part], f"{name} imports {imported}"
            continue
        inside = imported.removeprefix("ucadi").removeprefix(".")
        allowed = INSIDE[part] | BASE | {part, "__version__"}
        assert any(inside == a or inside.startswith(f"{a}.") for a in allowed), f"{name} imports {imported}"


def test_every_library_that_the_code_knows_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for extra in project["optional-dependencies"].values() for line in extra]
    declared = {re.match(r"[A-Za-z0-9_-]+", line)[0].lower() for line in [*project["dependencies"], *extras]}
    package_of = {
        "dicomweb_client": "dicomweb-client",
        "gdcm": "python-gdcm",
        "mlflow": "mlflow-skinny",
        "prometheus_client": "prometheus-client",
        "SimpleITK": "simpleitk",
    }
    used = {part_of(i) for name in modules() for i in imports_of(name)} - sys.stdlib_module_names - {"ucadi"}
    assert {package_of.get(library, library) for library in used} <= declared


# -- what every module has --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", modules())
def test_a_module_states_license_purpose_and_public_names(name):
    path = SOURCE / Path(*name.split(".")).with_suffix(".py")
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# SPDX-License-Identifier: Apache-2.0"
    tree = modules()[name]
    if all(isinstance(node, ast.Expr) for node in tree.body) or name == "__main__":
        return  # a package's file without names; the entry point has none either
    assert ast.get_docstring(tree)
    assigned = [n for n in tree.body if isinstance(n, ast.Assign)]
    lists = [ast.literal_eval(n.value) for n in assigned if getattr(n.targets[0], "id", "") == "__all__"]
    assert len(lists) == 1
    stated = lists[0]
    assert stated == sorted(set(stated), key=lambda n: (not n.isupper(), n[0].islower(), n)), "not in order"
    defined = {getattr(node, "name", None) for node in tree.body}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            defined |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            defined |= {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
    assert set(stated) <= defined


@pytest.mark.parametrize("name", modules())
def test_no_function_is_longer_than_seventy_lines(name):
    for node in ast.walk(modules()[name]):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 70, f"{name}.{node.name}"


@pytest.mark.parametrize("name", modules())
def test_nothing_is_ever_unpickled(name):
    assert not {
        i for i in imports_of(name) if part_of(i) in ("pickle", "dill", "cloudpickle", "joblib", "shelve")
    }
    for node in ast.walk(modules()[name]):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("torch.load", "torch.save", "eval", "exec"), f"{name} calls {called}"
            for keyword in node.keywords:
                if keyword.arg == "allow_pickle":
                    assert ast.literal_eval(keyword.value) is False


# -- error codes and reference pages ----------------------------------------------------------------------


def codes_used(name: str) -> set[str]:
    """Codes that a module gives to errors and refusals."""
    kinds = {k for k, v in vars(errors).items() if isinstance(v, type) and issubclass(v, errors.UcadiError)}
    found = set()
    for node in ast.walk(modules()[name]):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in kinds and node.args:
            code = node.args[0]
            choices = [code.body, code.orelse] if isinstance(code, ast.IfExp) else [code]
            found |= {choice.value for choice in choices if isinstance(choice, ast.Constant)}
    return found


@pytest.mark.parametrize("name", modules())
def test_every_code_that_is_used_is_registered(name):
    assert codes_used(name) <= CODES.keys()


def test_the_search_for_codes_finds_some():
    assert {"cohort-empty", "quorum-missed", "config-invalid"} <= {
        c for n in modules() for c in codes_used(n)
    }


@pytest.mark.parametrize("code", CODES)
def test_a_code_is_plain_words_with_whole_sentences(code):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", code)
    for sentence in (CODES[code].public_message, CODES[code].cure):
        assert sentence[0].isupper()
        assert sentence.endswith(".")


@pytest.mark.parametrize("page", ["error-codes.md", "cli.md", "reading.md"])
def test_the_reference_pages_are_up_to_date(page):
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "scripts" / "make_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (ROOT / "docs" / "reference" / page).read_text(encoding="utf-8")
    assert written == module.PAGES[page](), "run scripts/make_reference.py"


@pytest.mark.parametrize("code", CODES)
def test_every_code_is_documented(code):
    assert f"| `{code}` |" in (ROOT / "docs" / "reference" / "error-codes.md").read_text(encoding="utf-8")


# -- the command line starts quickly ----------------------------------------------------------------------


def test_the_commands_load_no_heavy_library():
    heavy = ["torch", "nvflare", "pydicom", "matplotlib", "scipy", "numpy", "pydantic"]
    code = f"import sys, ucadi.cli.main; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_help_takes_less_than_half_a_second_of_work():
    used = []
    for _ in range(3):  # processor time: what else the machine does must not decide
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "ucadi", "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(used) < 0.5


# -- what no file holds -----------------------------------------------------------------------------------


@cache
def kept_files() -> list[Path]:
    """Text files that git keeps or would keep."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    texts = {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".j2", ".html", ".css", ".sh", ".json", ""}
    paths = [ROOT / line for line in listed.stdout.splitlines()]
    return [path for path in paths if path.suffix in texts and path.is_file()]


# Written in two parts so that this file does not hold them.
PATH_HEADS = [("/wo", "rk/"), ("/ho", r"me/\w"), ("/Us", r"ers/\w"), ("/ro", "ot/"), ("/tm", r"p/\w")]
MACHINE_PATHS = re.compile("|".join(rf"(?<![\w.]){head}{tail}" for head, tail in PATH_HEADS))


def test_no_file_names_a_machines_own_paths():
    for path in kept_files():
        text = path.read_text(encoding="utf-8", errors="replace")
        assert not (found := MACHINE_PATHS.search(text)), f"{path.relative_to(ROOT)}: {found[0]}"


def test_no_file_says_to_do():
    words = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
    for path in kept_files():
        if path.suffix == ".py":
            assert not words.search(path.read_text(encoding="utf-8")), path.relative_to(ROOT)


def test_every_suppression_names_its_rule():
    for path in kept_files():
        if path.suffix == ".py" and path != Path(__file__):
            for line in path.read_text(encoding="utf-8").splitlines():
                assert not re.search(r"#\s*(noqa|type: ignore)\s*($|[^:\[\s])", line), f"{path.name}: {line}"
