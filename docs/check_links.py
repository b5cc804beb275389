"""The links of the built site: `python docs/check_links.py out/docs`. Status 1 if one leads nowhere."""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What a page offers to links (ids) and what it links to, pictures, styles and scripts included."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.loaded = {"", "top"}, set(), set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("id", "name") and tag != "meta":
                self.ids.add(value)
            elif name in ("href", "src") and value:
                self.links.add(value)
                if tag != "a":
                    self.loaded.add(value)


def check(folder):
    """(broken links as "page: link", addresses outside the site), both sorted."""
    pages = {path.resolve(): Page(path) for path in folder.rglob("*.html")}
    broken, outside = set(), set()
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme == "data":
                continue
            if parts.scheme or parts.netloc:
                outside.add(link)
                # Nothing is loaded from elsewhere, and an address that is linked to has a host.
                if link in page.loaded or parts.scheme not in ("http", "https") or "." not in parts.netloc:
                    broken.add(f"{path.relative_to(folder.resolve())}: {link}")
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            known = pages[target].ids if target in pages else {""}
            if not target.is_file() or unquote(parts.fragment) not in known:
                broken.add(f"{path.relative_to(folder.resolve())}: {link}")
    return sorted(broken), sorted(outside)


if __name__ == "__main__":
    broken, outside = check(Path(sys.argv[1]))
    print(f"links to other sites, not followed: {' '.join(outside) or 'none'}")
    if broken:
        sys.exit("links that lead nowhere:\n" + "\n".join(broken))
