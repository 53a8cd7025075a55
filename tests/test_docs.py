"""README and documentation: the code in them runs, and what they point at exists."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule

from distill.config import parse_command_line
from distill.data import Dataset, Labels
from distill.sampling import rattle
from distill.students import StudentSpec, initialise_student, save_bundle

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES_WITH_CODE = [ROOT / "README.md", ROOT / "docs/getting-started.md"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
REPOSITORY_PATH = re.compile(
    r"(?<![\w./])(?:distill|docs|experiments|notebooks|tests)/[\w./-]*[\w/]"
)


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def _blocks(page: Path, language: str) -> list[str]:
    return [code for kind, code in FENCE.findall(page.read_text("utf-8")) if kind == language]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a quickstart, with the bundle of a student whose forces are next to nothing.

    Dynamics with it are those of free atoms, so they are stable without any training.
    """
    ethanol = molecule("CH3CH2OH")
    structures = rattle([ethanol] * 4, 0.05)
    moves = np.stack([atoms.positions - ethanol.positions for atoms in structures])
    dataset = Dataset.from_structures(structures, "springs", "springs").labelled(
        Labels(energy=0.5 * (moves**2).sum((1, 2)) - 100.0, forces=list(-moves))
    )
    spec = StudentSpec("moment", dataset.elements, 5.0, {"n_channels": 2, "hidden": [4]})
    student = initialise_student(spec, dataset, np.arange(len(dataset)))
    statistics = {**student.variables["statistics"], "energy_scale": np.float32(1e-6)}
    student = replace(student, variables={**student.variables, "statistics": statistics})
    folder = tmp_path_factory.mktemp("docs") / "quickstart"
    save_bundle(student, folder / "student", {"licence": "MIT"})
    return folder


@pytest.mark.parametrize("page", PAGES_WITH_CODE, ids=_name)
def test_python_blocks_run_one_after_the_other(
    page: Path, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run_folder, tmp_path / "runs/quickstart")
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    blocks = _blocks(page, "python")
    assert blocks
    names: dict[str, object] = {"__name__": "documentation"}
    for number, code in enumerate(blocks):
        # Settings of jax are shown, not made: the other tests share this process.
        if "jax.config.update" in code:
            compile(code, f"{_name(page)}, block {number}", "exec")
            continue
        exec(compile(code, f"{_name(page)}, block {number}", "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_and_pictures_exist(page: Path) -> None:
    for target in LINK.findall(page.read_text("utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), f"{_name(page)} links to {target}, which does not exist"
        assert not anchor or anchor in _anchors(linked), f"{_name(page)}: no heading {target}"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_paths_of_the_repository_exist(page: Path) -> None:
    for path in REPOSITORY_PATH.findall(page.read_text("utf-8")):
        found = (ROOT / path).exists() or (page.parent / path).exists()
        assert found, f"{_name(page)} mentions {path}, which does not exist"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_commands_name_targets_and_keys_that_exist(
    page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    from quickstart_config import SMOKE, QuickstartConfig

    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for words in _commands(page):
        if words[0] == "make":
            assert words[1] in targets, f"{_name(page)}: no target {words[1]!r} in the Makefile"
        if "experiments/quickstart.py" in words and "--help" not in words:
            arguments = words[words.index("experiments/quickstart.py") + 1 :]
            parse_command_line(QuickstartConfig, None, arguments, smoke_overrides=SMOKE)


def test_the_table_of_parts_agrees_with_the_imports() -> None:
    rows = re.findall(
        r"^\| `distill/([a-z_]+)(?:/|\.py)` \|.*\| ([a-z_, ]+) \|$",
        (ROOT / "docs/architecture.md").read_text("utf-8"),
        re.MULTILINE,
    )
    documented = {part: set(imports.split(", ")) - {"none"} for part, imports in rows}
    assert documented == _imports()


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


def _commands(page: Path) -> Iterator[list[str]]:
    inline = re.findall(r"`((?:[A-Z_]+=\S+ )*(?:make|\S*python) [^`\n]+)`", page.read_text("utf-8"))
    for block in [*_blocks(page, "bash"), *inline]:
        script = re.sub(r"<<'(\w+)'.*?^\1$", "", block, flags=re.MULTILINE | re.DOTALL)
        for line in script.replace("\\\n", " ").splitlines():
            words = shlex.split(line.partition(" #")[0])
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            if words:
                yield words


def _imports() -> dict[str, set[str]]:
    """For each part of the package the other parts that it imports."""
    package = ROOT / "distill"
    parts: dict[str, set[str]] = {}
    for file in sorted(package.rglob("*.py")):
        part = file.relative_to(package).parts[0].removesuffix(".py")
        if part == "__init__":
            continue
        found = parts.setdefault(part, set())
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "distill":
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("distill."):
                found.add(str(node.module).split(".")[1])
            elif isinstance(node, ast.Import):
                found.update(
                    alias.name.split(".")[1]
                    for alias in node.names
                    if alias.name.startswith("distill.")
                )
        found -= {part, "__version__"}
    return parts
