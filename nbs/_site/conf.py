"""How Sphinx turns the prepared pages into the workbook's site; `avbook.site` prepares them and calls it.

Everything that a page needs lies beside it, so that the site works from disk: MathJax is the copy that the
package sphinx-mathjax-offline carries, and widgets are drawn by the bundle that ipywidgets itself installs.
"""
from importlib.metadata import files
from pathlib import Path


def _inside(package, name): return str(next(path for path in files(package) if str(path).endswith(name)).locate())


HERE = Path(__file__).parent
project, author, html_title = "avbook", "the avbook authors", "avbook"
extensions = ["myst_nb", "sphinx.ext.mathjax"]
exclude_patterns = ["**/.*"]

nb_execution_mode = "off"   # a page shows what was run; it runs nothing
nb_merge_streams = True
nb_render_markdown_format = "myst"
nb_ipywidgets_js = {"widgets.js": {}}
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type"]
python_use_unqualified_type_names = True
python_display_short_literal_types = True
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_theme_options = {
    "top_of_page_buttons": [],
    "light_css_variables": {"color-brand-primary": "#1f5fa8", "color-brand-content": "#1f5fa8"},
    "dark_css_variables": {"color-brand-primary": "#8ab8f0", "color-brand-content": "#8ab8f0"},
}
html_static_path = [
    *(str(HERE/name) for name in ("site.css", "search.js", "widgets.js")),
    _inside("sphinx-mathjax-offline", "static/mathjax/tex-svg.js"),
    _inside("widgetsnbextension", "static/extension.js"),
]
html_css_files = ["site.css"]
mathjax_path = "tex-svg.js"   # glyphs as outlines: browsers refuse fonts to pages opened from disk
html_show_search_summary = False   # it would have to read pages, which browsers refuse to pages opened from disk
html_copy_source = html_show_sourcelink = html_show_sphinx = html_show_copyright = False
html_baseurl = ""


def add_search(app, pagename, templatename, context, doctree):
    if pagename == "search":
        for name in ("subtitles.js", "search.js"): app.add_js_file(name)


def setup(app): app.connect("html-page-context", add_search)
