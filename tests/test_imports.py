"""No files of the package import one another in a circle, imports inside functions counted."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "pcl_clora"


def module_of(path, root):
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def for_types_only(node):
    test = getattr(node, "test", None)
    return isinstance(node, ast.If) and ast.unparse(test).rpartition(".")[2] == "TYPE_CHECKING"


def statements(tree):
    """All nodes but those that only a type checker reads."""
    for child in ast.iter_child_nodes(tree):
        if for_types_only(child):
            for other in child.orelse:
                yield other
                yield from statements(other)
            continue
        yield child
        yield from statements(child)


def imported(name, tree, modules):
    """The files that a file names in its imports; the package that a file lies in is not one of them."""
    for node in statements(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            targets = [target if target in modules else node.module for target in inner]
        else:
            continue
        yield from (target for target in targets if target in modules and target != name)


def graph_of(root, package=PACKAGE):
    files = {module_of(path, root): path for path in sorted((root / package).rglob("*.py"))}
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in files.items()}
    return {name: set(imported(name, tree, files)) for name, tree in trees.items()}


def circle_in(graph):
    """One circle of imports, as a list that begins and ends with the same file; empty for none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_files_import_one_another_in_a_circle():
    assert " <- ".join(circle_in(graph_of(ROOT))) == ""


def write(root, **files):
    (root / "house").mkdir()
    (root / "house" / "__init__.py").write_text("")
    for name, text in files.items():
        (root / "house" / f"{name}.py").write_text(text)
    return circle_in(graph_of(root, "house"))


def test_an_import_inside_a_function_closes_a_circle(tmp_path):
    found = write(
        tmp_path,
        a="from house.b import f",
        b="import house.c",
        c="def g():\n    from house import a\n",
    )
    assert {"house.a", "house.b", "house.c"} == set(found)


def test_types_may_meet_where_only_a_checker_reads_them(tmp_path):
    lines = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.a import f\n"
    assert write(tmp_path, a="from house.b import f", b=lines) == []
