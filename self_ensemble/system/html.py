"""HTML pages that load nothing: styles and pictures stand in them, and their policy forbids more.

Texts are escaped by whoever puts them into a page: `html_table` does it, `html_page` does not.
"""

import base64
import hashlib
from collections.abc import Sequence
from html import escape


def html_page(title: str, body: str, *, style: str = "", script: str = "") -> str:
    """A whole page.

    Args:
        title: a text, also the page's heading.
        body: HTML, what stands below the heading.
        style: CSS, besides that of all pages.
        script: JavaScript, the only one that the page's policy lets run.
    """
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
        "style-src 'unsafe-inline'"
    )
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{digest}'"
        body += f"\n<script>{script}</script>"
    return PAGE.format(policy=policy, title=escape(title), style=STYLE + style, body=body)


def html_table(rows: Sequence[Sequence[str]]) -> str:
    """Cells as texts, the header first."""
    header, *body = [[escape(cell) for cell in row] for row in rows]
    lines = ["<tr>" + "".join(f"<th scope=col>{cell}</th>" for cell in header) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in body]
    return "<div class=wide><table>" + "\n".join(lines) + "</table></div>"


def html_picture(content: bytes, kind: str, description: str) -> str:
    """A picture that stands in the page itself; kind: png or svg+xml."""
    data = base64.b64encode(content).decode()
    return f'<img alt="{escape(description)}" src="data:image/{kind};base64,{data}">'


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th { border-bottom: 1px solid; font-weight: 600; }
img { max-width: 100%; background: white; }
"""
