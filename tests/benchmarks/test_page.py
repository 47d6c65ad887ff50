"""docs/performance.md shows the last results."""

import page
import pytest


def test_the_page_shows_the_last_result_of_each_benchmark():
    text, results = page.PAGE.read_text(), page.results()
    assert results and page.filled(text, results) == text, "run python benchmarks/page.py"
    for name, result in results.items():
        assert not {"--smoke", "--small"} & set(result["command"].split()), f"{name}: the result of a test run"
    for name in set(page.NAMES) - set(results):
        assert f"<!-- {name} -->\nNot measured yet: run `make bench BENCHMARKS={name}`." in text


def test_the_page_lists_every_missed_goal_of_its_tables():
    tables, title, after = page.PAGE.read_text().partition("\n## Missed goals\n")
    listed = {line for line in after.splitlines() if line.startswith("- `")}
    rows = [line.strip("| ").split(" | ") for line in tables.splitlines() if line.endswith("| **missed** |")]
    assert title and len(rows) == len(listed)
    for what, measured, goal, _ in rows:
        (line,) = [line for line in listed if f"`: {what}: " in line]
        assert line.endswith(f": {measured} (goal: {goal})")


def place(name, text="old\n"):
    return f"<!-- {name} -->\n{text}<!-- end -->\n"


def test_results_are_inserted_at_their_places():
    goals = [
        {"what": "a / b", "measured": "2", "goal": "<= 1", "met": False},
        {"what": "c / b", "measured": "1", "goal": "<= 1", "met": True},
    ]
    result = {"command": "python x", "machine": "m", "sections": {"title": ["| a |"]}, "goals": goals}
    text = "before\n" + place("x") + place("y") + place("missed") + "after\n"
    filled = page.filled(text, {"x": result}, ("x", "y"))
    assert filled == (
        "before\n"
        + place("x", "`python x`\n\n(m)\n\n**title**\n\n| a |\n")
        + place("y", "Not measured yet: run `make bench BENCHMARKS=y`.\n")
        + place("missed", "- `x`: a / b: 2 (goal: <= 1)\n")
        + "after\n"
    )
    assert page.filled(filled, {"x": result}, ("x", "y")) == filled
    assert page.missed({"x": {**result, "goals": goals[1:]}}) == "All goals were met.\n"
    with pytest.raises(ValueError, match=r"places for \['missed', 'x', 'y'\]; expected \['missed', 'x'\]"):
        page.filled(text, {"x": result}, ("x",))
    with pytest.raises(ValueError, match=r"results of \['z'\]; expected only results of \['x', 'y'\]"):
        page.filled(text, {"x": result, "z": result}, ("x", "y"))
