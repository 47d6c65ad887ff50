"""griffe extension: the ``Example::`` of a docstring is shown as Python code."""

import re
import textwrap

import griffe

EXAMPLE = re.compile(r"^Example::\n\n((?:(?:    .*)?\n?)+)", re.M)


class Examples(griffe.Extension):
    """Makes fenced code of the indented lines after ``Example::``."""

    def on_object(self, *, obj, **kwargs):
        if obj.docstring:
            obj.docstring.value = EXAMPLE.sub(
                lambda match: f"**Example**\n\n```python\n{textwrap.dedent(match[1]).strip()}\n```\n\n",
                obj.docstring.value,
            )
