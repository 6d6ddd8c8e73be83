"""What keeps the code the shape it has: floors, sizes, what is light, what is forbidden."""

from __future__ import annotations

import ast
import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densekit.config import list_configs, load_config
from tools import make_samples
from tools.check_files import find_faults

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "densekit"
SOURCES = sorted(path for folder in ("densekit", "tools", "data") for path in (ROOT / folder).rglob("*.py"))
MAX_LINES = 400

# A module or package imports from the lines above its own, and a package from itself.
FLOORS = (
    ("errors",),
    ("files",),
    ("plain_yaml", "codecs", "cards"),
    ("faults", "image", "color", "resize"),
    ("config", "tiff"),
    ("origins",),
    ("blocks", "tiling"),
    ("models", "losses", "metrics", "memory", "ranks"),
    ("datasets", "checkpoint"),
    ("model_card",),
    ("dialects", "runtimes", "hub"),
    ("pretrained",),
    ("tasks", "predict", "report"),
    ("evaluate", "export", "encoders"),
    ("train",),
    ("cli",),
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
NEVER = {("blocks", "config"), ("models", "config"), ("losses", "config"), ("metrics", "config"), ("tiling", "config")}

LIGHT = (
    "", "errors", "files", "plain_yaml", "codecs", "cards", "faults", "image", "color", "resize", "tiff", "config",
    "models", "pretrained",
)  # fmt: skip
FORBIDDEN = (
    "eval", "exec", "compile", "__import__", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.hub.load",
)  # fmt: skip
HEAVY = {
    "torch", "torchvision", "safetensors", "cv2", "tifffile", "albumentations", "kornia", "timm",
    "segmentation_models_pytorch", "huggingface_hub",
}  # fmt: skip


def names_of(path: Path) -> tuple[str, ...]:
    """Returns the parts of a module's name below densekit; () for densekit itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


MODULES = {names_of(path): ast.parse(path.read_text("utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yields (line, module) for every import in a tree, function bodies included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative imports hide the floor"
            for alias in node.names:
                full = (*str(node.module).split(".")[1:], alias.name)
                is_module = node.module.split(".")[0] == "densekit" and full in MODULES
                yield node.lineno, f"{node.module}.{alias.name}" if is_module else str(node.module)


def imported_on_load(body: list[ast.AST]) -> Iterator[str]:
    """Yields what a module imports as soon as it is imported itself, whatever the conditions but TYPE_CHECKING."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (name for _, name in imported(node))
        for part in ("body", "orelse", "finalbody", "handlers"):
            yield from imported_on_load(getattr(node, part, []))


def unsafe(tree: ast.AST) -> Iterator[str]:
    """Yields "line: what" for every call and import that could run what a file holds."""
    for line, module in imported(tree):
        if module.split(".")[0] in ("pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"):
            yield f"{line}: imports {module}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            call, keywords = ast.unparse(node.func), {word.arg: word.value for word in node.keywords}
            if call in FORBIDDEN or "allow_pickle" in keywords:
                yield f"{node.lineno}: calls {call}"
            if call == "torch.load" and getattr(keywords.get("weights_only"), "value", None) is not True:
                yield f"{node.lineno}: calls torch.load without weights_only=True"


def test_each_module_imports_from_lower_floors_or_its_own_package_alone():
    faults = []
    for names, tree in MODULES.items():
        if not names:
            continue  # densekit/__init__.py hands out names of every floor, lazily
        own = names[0]
        for line, module in imported(tree):
            root, _, rest = module.partition(".")
            other = rest.split(".")[0]
            if root == "densekit" and other not in ("", own) and (FLOOR[other] >= FLOOR[own] or (own, other) in NEVER):
                faults.append(f"densekit/{'/'.join(names)}.py:{line}: {own} must not import {other}")
    assert not faults, "\n".join(faults)


def test_every_module_has_a_floor():
    assert {names[0] for names in MODULES if names} <= FLOOR.keys()


def test_no_file_is_longer_than_a_person_can_hold():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines()) for path in SOURCES}
    assert not {path: length for path, length in lengths.items() if length > MAX_LINES}


def test_nothing_evaluates_or_unpickles_what_it_is_given():
    faults = [
        f"{path.relative_to(ROOT)}:{fault}" for path in SOURCES for fault in unsafe(ast.parse(path.read_text("utf-8")))
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    "code",
    [
        "eval(x)",
        "import pickle",
        "def f():\n    from joblib import load",
        "torch.load(f)",
        "np.load(f, allow_pickle=True)",
    ],
)
def test_what_could_run_a_file_is_seen(code):
    assert list(unsafe(ast.parse(code)))


def test_what_is_safe_is_let_through():
    code = "net.eval(); re.compile(x); torch.load(f, weights_only=True); yaml.safe_load(x)"
    assert not list(unsafe(ast.parse(code)))


def test_light_modules_import_nothing_heavy_at_their_top():
    light = [n for n in MODULES if ".".join(n) in LIGHT or n[:1] == ("cli",)]
    loads = {n: {module.split(".")[0] for module in imported_on_load(MODULES[n].body)} & HEAVY for n in light}
    assert not {".".join(n): heavy for n, heavy in loads.items() if heavy}


def test_light_modules_import_no_torch_through_others_either():
    light = [".".join(["densekit", name]).rstrip(".") for name in (*LIGHT, "cli")]
    code = f"import sys, {', '.join(light)}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


@pytest.mark.parametrize("name", list_configs())
def test_a_shipped_config_validates(name):
    assert load_config(name).task == name.split("/")[0]


@pytest.mark.parametrize("name", list_configs())
def test_a_shipped_config_opens_with_what_it_is_and_its_command(name):
    lines = (ROOT / "configs" / f"{name}.yaml").read_text("utf-8").splitlines()
    header = list(itertools.takewhile(lambda line: line.startswith("#"), lines))
    assert len(header) >= 2
    assert f"densekit {name.split('/')[0]} train {name}" in "\n".join(header)


def test_the_samples_are_what_their_program_draws():
    for name, pixels in make_samples.draw_all().items():
        path = make_samples.FOLDER / name
        assert path.stat().st_size < 60_000
        with Image.open(path) as image:
            np.testing.assert_allclose(np.asarray(image, int), pixels.astype(int), atol=1)  # another libm may round


def test_large_files_and_merge_markers_are_found(tmp_path):
    (tmp_path / "large.bin").write_bytes(b"x" * 500_001)
    (tmp_path / "merge.py").write_text("a = 1\n" + "<" * 7 + " HEAD\nb = 2\n")
    (tmp_path / "fine.md").write_text("Heading\n=======\n")
    assert list(find_faults(tmp_path / "large.bin")) == [f"{tmp_path}/large.bin: 500001 bytes; a file may have 500000"]
    assert list(find_faults(tmp_path / "merge.py")) == [f"{tmp_path}/merge.py:2: a merge conflict is left unresolved"]
    assert not list(find_faults(tmp_path / "fine.md"))
