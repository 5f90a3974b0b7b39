"""How the notebooks are kept honest: what every notebook must look like, checked cell by cell."""
import ast
import json
import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(path for path in (ROOT/"nbs").rglob("*.ipynb")
                   if not any(part.startswith((".", "_")) for part in path.relative_to(ROOT).parts))
EXPORT = re.compile(r"^#\|\s*(export|exporti|exports|default_exp)\b", re.M)
FORBIDDEN = {
    "an absolute path": r"""["'(= ](/(home|Users|root|tmp|work|mnt)/|[A-Z]:\\)""",
    "CUDA_VISIBLE_DEVICES": r"CUDA_VISIBLE_DEVICES",
    "a pip install": r"^\s*[!%]\s*pip",
    "Path('..')": r"""Path\(['"]\.\.""",
    "a to-do": r"\b(TODO|FIXME|NotImplementedError)\b",
}

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: str(path.relative_to(ROOT/"nbs")))


def cells(path, kind=None): return [cell for cell in nbformat.read(path, 4).cells if kind in (None, cell.cell_type)]
def code_lines(source): return [line for line in source.splitlines() if line.strip() and not line.strip().startswith("#")]
def is_export(cell): return cell.cell_type == "code" and re.match(r"#\|\s*exports?\b", cell.source) is not None


def tree_of(cell):
    "The cell's syntax tree; lines that only IPython understands are left out."
    return ast.parse("\n".join("pass" if line.lstrip().startswith(("%", "!")) else line
                               for line in cell.source.splitlines()))


def is_import_cell(cell):
    "Whether a cell imports, and does nothing else."
    body = tree_of(cell).body
    return bool(body) and all(isinstance(node, ast.Import | ast.ImportFrom) for node in body)


def has_import(cell): return any(isinstance(node, ast.Import | ast.ImportFrom) for node in tree_of(cell).body)


def default_exp(path):
    found = [match[1] for cell in cells(path, "code")
             if (match := re.search(r"^#\|\s*default_exp\s+(\S+)", cell.source, re.M))]
    return found[0] if found else None


def public_names(path):
    "Names that the notebook's export cells define at top level and do not hide behind an underscore."
    names = set()
    for cell in filter(is_export, cells(path)):
        for node in tree_of(cell).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef): names.add(node.name)
            if isinstance(node, ast.Assign): names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name): names.add(node.target.id)
    return {name for name in names if not name.startswith("_")}


def is_experiment(path): return default_exp(path) is None and "write_record(" in cells(path)[-1].source
def has_parameters(path): return any("parameters" in cell.metadata.get("tags", []) for cell in cells(path, "code"))


def test_there_are_notebooks(): assert len(NOTEBOOKS) >= 10


def test_each_module_has_one_notebook():
    modules = [name for name in map(default_exp, NOTEBOOKS) if name]
    assert len(modules) == len(set(modules))


@each_notebook
def test_begins_with_title_and_subtitle(path):
    first = cells(path)[0]
    assert first.cell_type == "markdown" and re.match(r"# \S.*\n+> \S", first.source), first.source[:80]


@each_notebook
def test_cells_that_import_do_nothing_else(path):
    mixed = [cell.source for cell in cells(path, "code") if has_import(cell) and not is_import_cell(cell)]
    assert not mixed, mixed[0]


@each_notebook
def test_no_star_import_is_exported(path):
    stars = [cell.source for cell in filter(is_export, cells(path)) if re.search(r"import \*", cell.source)]
    assert not stars, stars[0]


@each_notebook
def test_every_public_name_is_used_in_its_own_notebook(path):
    used = "\n".join(cell.source for cell in cells(path, "code") if not is_export(cell))
    unused = sorted(name for name in public_names(path) if not re.search(rf"\b{name}\b", used))
    assert not unused, f"exported, never shown: {unused}"


@each_notebook
def test_functions_fit_on_a_screen(path):
    long = [(node.name, node.end_lineno - node.lineno + 1) for cell in filter(is_export, cells(path))
            for node in ast.walk(tree_of(cell)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and node.end_lineno - node.lineno + 1 > 45]
    assert not long, long


@each_notebook
def test_is_read_in_one_sitting(path):
    n_lines = sum(len(code_lines(cell.source)) for cell in cells(path, "code") if is_export(cell))
    assert len(cells(path)) <= 90 and n_lines <= 400, f"{len(cells(path))} cells, {n_lines} exported lines"


@each_notebook
def test_lines_are_short(path):
    long = [line for cell in cells(path, "code") for line in cell.source.splitlines() if len(line) > 110]
    assert not long, long[0]


@each_notebook
@pytest.mark.parametrize("what", FORBIDDEN)
def test_holds_nothing_of_one_machine(path, what):
    hits = [line for cell in cells(path, "code") for line in cell.source.splitlines()
            if re.search(FORBIDDEN[what], line)]
    assert not hits, hits[0]


@each_notebook
def test_is_clean_and_small(path):
    assert path.stat().st_size <= 500_000
    assert all(cell.get("execution_count") is None for cell in cells(path, "code"))
    assert "widgets" not in json.loads(path.read_text())["metadata"], "the state of widgets is kept: they are not committed"
    assert not re.search(r"/(home|Users|root|tmp|work|mnt)/[\w.]", path.read_text()), "a machine's path in the outputs"


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if default_exp(path)], ids=lambda path: path.stem)
def test_a_module_fails_on_purpose_and_shows_something(path):
    code = cells(path, "code")
    assert any(re.search(r"\b(expect_fail|test_fail|ExceptionExpected)\b", cell.source) for cell in code), "no failure cell"
    shown = [output for cell in code for output in cell.outputs
             if {"image/png", "text/html", "image/svg+xml"} & set(output.get("data", {}))]
    assert shown, "no picture and no table among the outputs"


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if default_exp(path)], ids=lambda path: path.stem)
def test_no_two_export_cells_in_a_row(path):
    code = [cell for cell in cells(path, "code") if not re.match(r"#\|\s*default_exp", cell.source)]
    rows = [second.source[:60] for first, second in zip(code, code[1:], strict=False)
            if is_export(first) and is_export(second) and not is_import_cell(first)]
    assert not rows, rows


@pytest.mark.parametrize("path", list(filter(has_parameters, NOTEBOOKS)), ids=lambda path: path.stem)
def test_parameters_are_typed_literals_with_a_comment(path):
    tagged = [cell for cell in cells(path, "code") if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    for node, line in zip(tree_of(tagged[0]).body, code_lines(tagged[0].source), strict=True):
        assert isinstance(node, ast.AnnAssign) and "#" in line, f"not `name: type = literal  # comment`: {line}"
        ast.literal_eval(node.value)


def test_there_is_an_experiment(): assert list(filter(is_experiment, NOTEBOOKS))


@pytest.mark.parametrize("path", list(filter(is_experiment, NOTEBOOKS)), ids=lambda path: path.stem)
def test_an_experiment_has_parameters_and_keeps_its_output_elsewhere(path):
    assert has_parameters(path)
    assert not any(cell.outputs for cell in cells(path, "code")), "the executed copy belongs to the run, not here"
