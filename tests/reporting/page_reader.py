"""Reading a page back: its text, its tags, the cells of its tables."""

import re
from html import unescape
from html.parser import HTMLParser


class Page(HTMLParser):
    """The text of a page, its tags and attributes, and whether every element is closed."""

    VOID = {"meta", "br", "img", "link", "input", "hr"}

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.words, self.open, self.ids = set(), [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


def section(page, title, until="<h2"):
    """The text between a heading and the next one."""
    start = page.index(f">{title}</h")
    return Page(page[page.index(">", start + 1) + 1 :].partition(until)[0]).text


def cells_of(page, label):
    """The cells of all table rows of that label, as text, with the words of marks."""
    found = re.findall(r'<th scope="row">(.*?)</th>(.*?)</tr>', page, re.DOTALL)
    rows = []
    for name, cells in found:
        if unescape(re.sub(r"<[^>]+>", "", name)) == label:
            cells = re.sub(r'<svg[^>]*aria-label="([^"]*)"[^>]*>.*?</svg>', r"[\1] ", cells)
            cells = re.sub(r"<svg.*?</svg>", "", cells)
            rows.append([
                unescape(re.sub(r"<[^>]+>", " ", cell)).strip()
                for cell in re.findall(r"<td[^>]*>(.*?)</td>", cells)
            ])  # fmt: skip
    return rows
