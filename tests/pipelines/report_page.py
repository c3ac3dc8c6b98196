"""A page as a test reads it."""

import dataclasses
import json
from html.parser import HTMLParser

VOID = {"meta", "br", "img", "input", "link", "hr"}
TAGS = """a b
bdi body button code dd details div dl dt figcaption figure h1 h2 h3 h4 head header html label li main meta nav
noscript ol option p pre script section select small span strong style sub summary table tbody td th thead title tr
ul svg g line rect text circle polyline polygon"""


@dataclasses.dataclass
class Element:
    tag: str
    attributes: dict
    text: str = ""


class Page(HTMLParser):
    """Elements in document order, each with all the text inside it."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self._open = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append(Element(tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(self.elements[-1])

    def handle_startendtag(self, tag, attrs):
        self.elements.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open[-1].tag == tag, f"</{tag}> closes <{self._open[-1].tag}>"
        self._open.pop()

    def handle_data(self, data):
        for element in self._open:
            element.text += data

    def find(self, tag=None, css=None, **attributes):
        return [
            e
            for e in self.elements
            if (tag is None or e.tag == tag)
            and (css is None or css in (e.attributes.get("class") or "").split())
            and all(e.attributes.get(name) == value for name, value in attributes.items())
        ]

    def data(self, key):
        (block,) = self.find("script", id=f"data-{key}")
        return json.loads(block.text)


def plain(text):
    return " ".join(text.replace("\xa0", " ").replace("−", "-").split())
