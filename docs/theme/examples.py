"""griffe extension: the examples of docstrings are shown as Python code."""

import re
import textwrap

import griffe

EXAMPLE = re.compile(r"^Example::\n\n((?:(?: +.*)?(?:\n|$))+)", re.M)
"""``Example::`` and the indented lines after it."""
PROMPT = re.compile(r"^>>> .*(?:\n.+)*", re.M)
"""A line with a prompt, and all lines up to the next empty one."""


def fenced(docstring: str) -> str:
    """A docstring whose examples are fenced code."""
    titled = EXAMPLE.sub(lambda m: f"**Example**\n\n```python\n{textwrap.dedent(m[1]).strip()}\n```\n\n", docstring)
    return PROMPT.sub(lambda m: f"```pycon\n{re.sub(r'  # doctest: .*', '', m[0])}\n```", titled)


class Examples(griffe.Extension):
    """Changes the docstring of every object that is loaded."""

    def on_object(self, *, obj, **kwargs):
        if obj.docstring:
            obj.docstring.value = fenced(obj.docstring.value)
