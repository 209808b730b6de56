"""Marks that are told apart by shape and by word, with or without colour, and their style.

    pass       a tick in a circle            seen      a full square
    caution    an exclamation in a triangle  unseen    a hollow square
    fail       a cross in an octagon         came back a full square with an arrow in it
    unknown    a dash in a diamond

Each mark is a drawing of a few lines inside the page; no font is needed for it. It carries its
words for those who do not see it. Colours are those of M. Okabe and K. Ito, as in `pictures`.
"""

from html import escape

_SHAPES = {
    "pass": (
        '<circle cx="10" cy="10" r="9" fill="#007a59"/>'
        '<path d="M5.5 10.5l3 3 6-7" fill="none" stroke="#fff" stroke-width="2.4"/>'
    ),
    "caution": (
        '<path d="M10 1L19.4 18.5H.6Z" fill="#E69F00"/>'
        '<path d="M10 7v6M10 14.6v2.2" fill="none" stroke="#1a1a1a" stroke-width="2.2"/>'
    ),
    "fail": (
        '<path d="M6.3 1h7.4L19 6.3v7.4L13.7 19H6.3L1 13.7V6.3Z" fill="#C04A00"/>'
        '<path d="M6.2 6.2l7.6 7.6M13.8 6.2l-7.6 7.6" stroke="#fff" stroke-width="2.4"/>'
    ),
    "unknown": (
        '<path d="M10 1l9 9-9 9-9-9Z" fill="#fff" stroke="#595959" stroke-width="1.6"/>'
        '<path d="M6 10h8" stroke="#595959" stroke-width="2.2"/>'
    ),
    "seen": '<rect x="3" y="3" width="14" height="14" fill="#1a1a1a"/>',
    "unseen": (
        '<rect x="4" y="4" width="12" height="12" fill="#fff" stroke="#8a8a8a" stroke-width="1.6"/>'
    ),
    "came back": (
        '<rect x="1" y="1" width="18" height="18" fill="#C04A00"/>'
        '<path d="M15 15V8.5H6M9 5L5.5 8.5 9 12" fill="none" stroke="#fff" stroke-width="2"/>'
    ),
}

CSS = """
a{color:#00507f} a:focus-visible{outline:3px solid #E69F00}
svg.mark,.scroll svg.mark{display:inline-block;min-width:0;width:1.15em;height:1.15em;
vertical-align:-.2em;margin-right:.35em}
.light{font-weight:600} td.light{text-align:left;white-space:normal;min-width:11rem}
.verdict{font-size:1.15rem;margin:0 0 .6rem}
.matrix thead th{white-space:normal;min-width:5.6rem;max-width:8rem;vertical-align:bottom}
.matrix td{text-align:left} .matrix thead th{text-align:left}
.matrix td svg.mark{width:.95em;height:.95em;vertical-align:-.12em}
.matrix tbody th{position:sticky;left:0;background:#fff;z-index:1}
.matrix tr.reference th{background:var(--tint)} .matrix td.undefined{color:var(--soft)}
.matrix tr.group th{background:#fff;border-bottom:2px solid var(--soft);padding-top:.9rem;
white-space:nowrap} .matrix tr.group td{border-bottom:2px solid var(--soft)}
.numbers thead th{white-space:normal;min-width:6.5rem;max-width:11rem;vertical-align:bottom}
td.wide{min-width:20rem} .key span{white-space:nowrap;margin-right:1.2em}
nav{margin:.3rem 0 1rem} nav a{margin-right:1.1em;white-space:nowrap}
.trust{border-left:.4rem solid #007a59;background:#eef7f3;padding:.3rem 1rem}
.distrust{border-left:.4rem solid #C04A00;background:#fdf1ea;padding:.3rem 1rem}
.part{border-top:3px solid var(--ink);margin-top:4rem;padding-top:.8rem}
@media (max-width:600px){tbody th{min-width:8rem;max-width:8.5rem;overflow-wrap:anywhere}
td.light{min-width:8rem} .matrix tbody th{min-width:8.2rem;max-width:8.2rem}
.matrix tr.group th{max-width:none}}
@media print{.scroll{overflow:visible}}
"""


def mark(kind: str, words: str = "") -> str:
    """A mark of the module, described by its words; without words it is said by the text beside it.

    Example:
        >>> mark("seen", "different")[:71]
        '<svg class="mark" viewBox="0 0 20 20" role="img" aria-label="different"'
    """
    said = f'role="img" aria-label="{escape(words)}"' if words else 'aria-hidden="true"'
    return f'<svg class="mark" viewBox="0 0 20 20" {said}>{_SHAPES[kind]}</svg>'


def badge(kind: str, words: str) -> str:
    """A mark with its words beside it."""
    return f"{mark(kind)}{escape(words)}"


def link(address: str, words: str) -> str:
    """A link to another file of the same folder; both are escaped."""
    return f'<a href="{escape(address)}">{escape(words)}</a>'
