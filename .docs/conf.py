"""The site: `sphinx-build -n -W -c .docs netmind_rentgpu/guide build/site`."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes
from pygments.lexers.special import TextLexer

import netmind_rentgpu

if TYPE_CHECKING:
    import click
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

HERE = Path(__file__).parent

project = "netmind_rentgpu"
author = "The netmind_rentgpu developers"
version = release = netmind_rentgpu.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx_click",
    "sphinx_copybutton",
]
# Relative links to headings, as on GitHub.
myst_heading_anchors = 3
default_role = "py:obj"
highlight_language = "python"
# The inventories are kept here, because a build has no network.
intersphinx_mapping = {
    "python": ("https://docs.python.org/3", str(HERE / "inventories" / "python.inv")),
    "aiohttp": ("https://docs.aiohttp.org/en/stable", str(HERE / "inventories" / "aiohttp.inv")),
}

autodoc_member_order = "bysource"
autodoc_class_signature = "separated"
autodoc_inherit_docstrings = True
autodoc_preserve_defaults = True
# Names of types as the annotations write them, because their values are long.
ALIASES = (
    *("GPUName", "RegionCode", "CurrencyName", "TimeoutOption", "RetriesOption", "Condition", "OfferKey"),
    *("OnTransferProgress", "PipeSink", "PipeSource", "What", "Call"),
)
autodoc_type_aliases = {name: name for name in ALIASES}
maximum_signature_line_length = 100
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"netmind_rentgpu {version}"
html_show_copyright = False
# A prompt is not copied, and of a session only its commands are.
copybutton_prompt_text = "$ "

PUBLIC = (
    "netmind_rentgpu",
    "netmind_rentgpu.conditions",
    "netmind_rentgpu.emulator",
    "netmind_rentgpu.testing",
    "netmind_rentgpu.dask",
)
NAMES = {name: f"{module}.{name}" for module in reversed(PUBLIC) for name in import_module(module).__all__}


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement) -> nodes.Node | None:
    """Link a name that a docstring or an annotation gives without its module; show any other text as code.

    A name of the public API that has no page stays unresolved, so that the build fails.
    """
    if node.get("refdomain") != "py":
        return None
    target = re.sub(r"\(.*\)$", "", str(node["reftarget"]))
    target = re.sub(r"^netmind_rentgpu\.(?:[a-z_]+\.)*", "", target)
    first, _, attribute = target.partition(".")
    if first not in NAMES:
        return content
    objects = env.domains.python_domain.objects
    found = objects.get(f"{NAMES[first]}.{attribute}")
    # Fields of values have no place of their own; the page of the class has them.
    if found is None and (not attribute or attribute in attribute_names(NAMES[first])):
        found = objects.get(NAMES[first])
    if found is None:
        return None
    link = nodes.reference("", "", content, internal=True)
    link["refuri"] = f"{app.builder.get_relative_uri(str(node['refdoc']), found.docname)}#{found.node_id}"
    return link


def attribute_names(full: str) -> set[str]:
    module, _, name = full.rpartition(".")
    value = getattr(import_module(module), name)
    return {*dir(value), *(annotation for kind in value.__mro__ for annotation in getattr(kind, "__annotations__", ()))}


def mark_code(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Make code of each text in backquotes that is not the name of a class, such as an argument's name."""
    del app, what, name, obj, options
    split_names(lines)
    marked = re.sub(r"(?<!`)`([^`]+)`(?!`)(\w?)", lambda found: _marked(found[1], found[2]), "\n".join(lines))
    lines[:] = marked.split("\n")


def split_names(lines: list[str]) -> None:
    """Give each attribute of a list such as `memory, disk: units unknown` an entry of its own."""
    start = lines.index("Attributes:") if "Attributes:" in lines else len(lines)
    position = start + 1
    while position < len(lines):
        found = re.match(r"    (\w+(?:, \w+)+):", lines[position])
        if found is None:
            position += 1
            continue
        end = next((end for end in range(position + 1, len(lines)) if not lines[end].startswith(" " * 8)), len(lines))
        entry = lines[position:end]
        entries = [[entry[0].replace(found[1], name, 1), *entry[1:]] for name in found[1].split(", ")]
        lines[position:end] = [line for one in entries for line in one]
        position += len(entries) * len(entry)


def _marked(text: str, after: str) -> str:
    is_class = re.fullmatch(r"[A-Z]\w*[a-z]\w*(?:\.\w+)?", text)
    return (f"`{text}`" if is_class else f"``{text}``") + (f"\\ {after}" if after else "")


def shorten(
    app: Sphinx, what: str, name: str, obj: object, options: object, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """Show the names of types as they are, which autodoc puts into `TypeAliasForwardRef(...)`."""
    del app, what, name, obj, options
    pattern = r"TypeAliasForwardRef\('(\w+)'\)"
    return tuple(text and re.sub(pattern, r"\1", text) for text in (signature, returned))  # type: ignore[return-value]  # of two


def skip(app: Sphinx, what: str, name: str, obj: object, skipped: bool, options: Any) -> bool | None:  # noqa: FBT001  # autodoc calls it so
    """Leave out the `__init__` of a class that a user does not call."""
    del app, what, obj, skipped
    return True if name == "__init__" and not options.get("special-members") else None


def show_own_options(app: Sphinx, ctx: click.Context, lines: list[str]) -> None:
    """Leave the options of all commands to the root's own list."""
    del app
    if ctx.parent is None:
        return
    everywhere = {option.opts[0] for option in ctx.find_root().command.params}
    blocks = re.split(r"(?=^\.\. option:: )", "\n".join(lines), flags=re.MULTILINE)
    own = [block for block in blocks if not everywhere & set(re.findall(r"--?[\w-]+", block.partition("\n")[0]))]
    lines[:] = "".join(own).split("\n") if own else []


def write_llms(app: Sphinx, error: Exception | None) -> None:
    """Write `llms.txt`: the title, the summary and a link to the source of each page, for programs that read."""
    if error is not None or app.builder.format != "html":
        return
    index = (Path(app.srcdir) / "index.md").read_text(encoding="utf-8").partition("```{toctree}")[0]
    title, summary, *rest = index.strip().split("\n\n", 2)
    links = re.sub(r"\]\(([\w/-]+)\.md\)", r"](_sources/\1.md.txt)", rest[0] if rest else "")
    quoted = "> " + summary.replace("\n", " ")
    (Path(app.outdir) / "llms.txt").write_text(f"{title}\n\n{quoted}\n\n{links}\n", encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_lexer("crontab", TextLexer)
    # Before napoleon, which connects at the default priority.
    app.connect("autodoc-process-docstring", mark_code, priority=400)
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-signature", shorten)
    app.connect("missing-reference", resolve, priority=900)
    app.connect("sphinx-click-process-options", show_own_options)
    app.connect("build-finished", write_llms)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
