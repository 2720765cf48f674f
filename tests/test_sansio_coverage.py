"""The coverage check names each threshold that is missed."""

from sansio_coverage import is_sansio, shortcomings


def report(*, lines: int = 100, branches: int = 100, files: dict | None = None) -> dict:
    totals = {"covered_lines": lines, "num_statements": 100, "covered_branches": branches, "num_branches": 100}
    return {"totals": totals, "files": files or {}}


def test_only_the_first_line_of_a_module_marks_it():
    """A module that merely writes about sans-I/O is none."""
    assert is_sansio('"""Tails (sans-I/O).\n\nMore."""\n')
    assert not is_sansio('"""The shell.\n\nAround what is (sans-I/O)."""\n')
    assert not is_sansio("x = 1\n")


def test_lines_and_branches_count_apart():
    """Good lines do not make up for bad branches."""
    assert shortcomings(report(lines=95, branches=95), set()) == []
    assert shortcomings(report(lines=94), set()) == ["lines in all: 94.00 % covered, at least 95 % expected"]
    assert shortcomings(report(branches=0), set()) == ["branches in all: 0.00 % covered, at least 95 % expected"]


def test_sansio_modules_are_whole():
    """One missing line or branch, or no measurement at all, is too much."""
    files = {
        "a.py": {"missing_lines": [], "missing_branches": []},
        "b.py": {"missing_lines": [3], "missing_branches": []},
        "c.py": {"missing_lines": [], "missing_branches": [[1, 2]]},
    }
    assert shortcomings(report(files=files), {"a.py"}) == []
    found = shortcomings(report(files=files), {"a.py", "b.py", "c.py", "d.py"})
    assert [line.partition(":")[0] for line in found] == ["b.py", "c.py", "d.py"]
