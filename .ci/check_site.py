"""Check that every link inside a built site has a target: files and places in pages."""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """Links of a page, and the places that it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect what refers and what is referred to."""
        for name, value in attrs:
            if value and name in ("href", "src"):
                self.links.append(value)
            elif value and name in ("id", "name"):
                self.places.add(value)


def main(site: Path) -> None:
    """Raise SystemExit with the broken links, or print how many were followed."""
    pages = {path: Page(path) for path in sorted(site.resolve().rglob("*.html"))}
    broken, followed = [], 0
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            followed += 1
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            known = pages.get(target)
            nowhere = known and parts.fragment and unquote(parts.fragment) not in known.places
            if nowhere or not target.exists():
                broken.append(f"{path.relative_to(site.resolve())}: {link}")
    if broken:
        raise SystemExit("broken links:\n" + "\n".join(broken))
    if not followed:
        raise SystemExit(f"{site} must be a built site, got no links")
    print(f"{len(pages)} pages, {followed} links")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
