"""Read a page as a browser would."""

from html.parser import HTMLParser

from victorctl.page import page

VOID = {"meta", "input", "circle", "image", "line", "path", "use"}  # have no end


class Reader(HTMLParser):
    """Collects tags with their attributes, what a page would load, and its text line by line."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.loaded, self.lines, self.open = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        loading = {"src", "srcset", "href", "xlink:href", "data", "poster", "action"}
        self.loaded += [value for name, value in attributes if name in loading]
        self.open += [] if tag in VOID else [tag]

    def handle_startendtag(self, tag, attributes):
        assert tag in VOID
        self.handle_starttag(tag, attributes)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.lines += [line.strip() for line in data.splitlines() if line.strip()]

    def all(self, tag, **wanted):
        found = [attributes for name, attributes in self.tags if name == tag]
        return [one for one in found if wanted.items() <= one.items()]


def read(result, differences=(), plots=None):
    return Reader(page(result, differences, plots or {}).decode())
