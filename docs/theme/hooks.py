"""mkdocs hooks: pages outside of docs/, links, code in sentences, patterns in the navigation, no foreign scripts."""

import re
from pathlib import Path

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "checkpoints/README.md": "run_directories.md",
}
"""Files of the repository, and the pages of the site that show them."""

PART = re.compile(r"[_.(=/,|](?=\w)|[a-z](?=[A-Z])")
"""Where a part of a name ends."""


def on_config(config):
    """Replace a pattern in the navigation by the pages, or notebooks, that match it and are not listed."""
    config.nav = _expanded(config.nav, Path(config.docs_dir), str(config.nav))
    return config


def _expanded(entries, docs, listed):
    found = []
    for entry in entries:
        if isinstance(entry, dict):
            ((title, inner),) = entry.items()
            found.append({title: _expanded(inner, docs, listed) if isinstance(inner, list) else inner})
        elif "*" in entry:
            pages = sorted(path.relative_to(docs).with_suffix(".md").as_posix() for path in docs.glob(entry))
            found += [page for page in pages if f"'{page}'" not in listed]
        else:
            found.append(entry)
    return found


def on_files(files, config):
    """Add the pages of files outside of docs/."""
    for source, page in PAGES.items():
        text = re.sub(r"\]\((?:\.\./)?docs/", "](", (ROOT / source).read_text())
        files.append(File.generated(config, page, content=text))
    return Files(files)


def on_page_markdown(markdown, page, config, files):
    """Lead links to those files and to notebooks to their pages. A link to another file becomes its path."""

    def of_the_repository(match):
        text, target, section = match["text"], match["target"], match["section"] or ""
        if target in PAGES:
            return f"[{text}]({'../' * page.file.src_uri.count('/')}{PAGES[target]}{section})"
        return f"`{target}`"

    up = "../" * (1 + page.file.src_uri.count("/"))
    link = rf"\[(?P<text>[^\]]+)\]\({re.escape(up)}(?P<target>(?!\.\./)[^)#]+)(?P<section>#[^)]*)?\)"
    markdown = re.sub(r"(?<!Download this notebook)(\]\((?!https?:)[\w/.]+)\.ipynb\)", r"\1.md)", markdown)
    return re.sub(link, of_the_repository, markdown)


def on_page_content(html, page, config, files):
    """Line breaks in code within sentences and tables: none after the hyphens of an option; in tables, long names
    break between their parts. ``\\|`` in a table is a bar."""

    def of_code(match):
        code = match[1].replace("\\|", "|")
        return f"<code>{re.sub(r'(?<!\S)--?[a-z]+', r'<span class=option>\g<0></span>', code)}</code>"

    def of_cell(match):
        return re.sub(r"(?<=<code>)[^<]+", lambda code: re.sub(PART, r"\g<0><wbr>", code[0]), match[0])

    html = re.sub(r"<td.*?</td>", of_cell, html, flags=re.S)
    return re.sub(r"<code>((?:[^<]|<wbr>)*)</code>", of_code, html)


def on_post_page(output, page, config):
    """Search in pages that are opened as files uses the script of this folder; the theme's is on the web."""
    up = "../" * page.file.dest_uri.count("/")
    return output.replace("https://unpkg.com/iframe-worker/shim", f"{up}theme/file_worker.js")


def on_post_template(output_content, template_name, config):
    """The same for the page "not found"."""
    return output_content.replace("https://unpkg.com/iframe-worker/shim", "/theme/file_worker.js")
