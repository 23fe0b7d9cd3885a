"""How `make site` turns README.md, docs/ and the READMEs of examples/ into a site.

The pages are Markdown that also reads well without the site.
"""

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx
from sphinx.util.typing import stringify_annotation

from statsig_otel import __version__
from statsig_otel.config import Settings

project = "statsig-otel"
release = __version__
html_title = f"statsig-otel {release}"

root_doc = "docs/index"
include_patterns = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "docs/*.md", "examples/*/README.md"]
html_theme = "furo"
html_copy_source = False
html_show_copyright = False
# The root of the site leads to its first page.
html_additional_pages = {"index": "redirect.html"}
templates_path = ["templates"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 4

# In docstrings, `name` is code, as in Markdown.
default_role = "code"
autodoc_typehints = "signature"
autodoc_default_options = {"exclude-members": "model_config"}
# A type may have the same name as an attribute.
suppress_warnings = ["ref.python"]


def settings_signature(
    _app: Sphinx, _what: str, _name: str, documented: object, _options: object, signature: str, returns: str
) -> tuple[str, str | None]:
    """Settings with plain types: pydantic's own signature also has its validators, and nobody can read it."""
    if not (isinstance(documented, type) and issubclass(documented, Settings)):
        return signature, returns
    fields = [
        f"{name}: {stringify_annotation(field.annotation, 'smart')}"
        + ("" if field.is_required() else " = ..." if field.default_factory else f" = {field.default!r}")
        for name, field in documented.model_fields.items()
    ]
    return f"(*, {', '.join(fields)})" if fields else "()", None


def setup(app: Sphinx) -> None:
    for language in ("logql", "logsql"):  # Pygments does not know them
        app.add_lexer(language, TextLexer)
    app.connect("autodoc-process-signature", settings_signature)
