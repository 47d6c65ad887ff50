"""The page of the documentation shows what was measured last."""

import page
import pytest


def test_the_page_shows_the_last_run_of_each():
    text, kept = page.PAGE.read_text(), page.results()
    assert kept and page.filled(text, kept) == text, "python benchmarks/page.py brings it up to date"
    for name, result in kept.items():
        assert not {"--smoke", "--small"} & set(result["command"].split()), f"{name}: not a result"
    for name in set(page.NAMES) - set(kept):
        assert f"<!-- {name} -->\nNot measured yet: run `make bench BENCHMARKS={name}`." in text


def test_the_page_lists_every_line_of_its_tables_that_says_missed():
    tables, title, after = page.PAGE.read_text().partition("\n## Missed goals\n")
    listed = {line for line in after.splitlines() if line.startswith("- `")}
    rows = [line.strip("| ").split(" | ") for line in tables.splitlines() if line.endswith("| **missed** |")]
    assert title and len(rows) == len(listed)
    for what, measured, goal, _ in rows:
        (line,) = [line for line in listed if f"`: {what}, " in line]
        assert line.endswith(f", {measured} where {goal} was hoped for")


def place(name, text="old\n"):
    return f"<!-- {name} -->\n{text}<!-- end -->\n"


def test_a_page_is_filled_where_there_is_a_place():
    goals = [
        {"what": "a / b", "measured": "2", "goal": "<= 1", "met": False},
        {"what": "c / b", "measured": "1", "goal": "<= 1", "met": True},
    ]
    result = {"command": "python x", "machine": "m", "sections": {"title": ["| a |"]}, "goals": goals}
    text = "before\n" + place("x") + place("y") + place("missed") + "after\n"
    told = page.filled(text, {"x": result}, ("x", "y"))
    assert told == (
        "before\n"
        + place("x", "`python x`\n\n(m)\n\n**title**\n\n| a |\n")
        + place("y", "Not measured yet: run `make bench BENCHMARKS=y`.\n")
        + place("missed", "- `x`: a / b, 2 where <= 1 was hoped for\n")
        + "after\n"
    )
    assert page.filled(told, {"x": result}, ("x", "y")) == told
    assert page.missed({"x": {**result, "goals": goals[1:]}}) == "Nothing that was judged.\n"
    with pytest.raises(ValueError, match=r"places for \['missed', 'x', 'y'\], expected \['missed', 'x'\]"):
        page.filled(text, {"x": result}, ("x",))
    with pytest.raises(ValueError, match=r"results of \['z'\], expected some of \['x', 'y'\]"):
        page.filled(text, {"x": result, "z": result}, ("x", "y"))
