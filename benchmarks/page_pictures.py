"""Pictures of a page as people see it: by day, by night, and on a phone.

    python benchmarks/page_pictures.py reports/quickstart/index.html reports/page

A Chromium must be on the PATH, and the extra `browser` installed.
"""

import io
import shutil
import sys
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

COLOURS = 256
VIEWS: dict[str, tuple[Literal["light", "dark"], int]] = {
    "light": ("light", 1280),
    "dark": ("dark", 1280),
    "phone": ("light", 390),
}


def main() -> int:
    """Take the pictures and return the exit code."""
    page, folder = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        chromium = (
            shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        )
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, (scheme, width) in VIEWS.items():
            with Image.open(io.BytesIO(_picture(browser, page, scheme, width))) as picture:
                small = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
                small.save(folder / f"{name}.png", optimize=True)
        browser.close()
    return 0


def _picture(browser: Browser, page: Path, scheme: Literal["light", "dark"], width: int) -> bytes:
    """Return the whole page as a PNG file, when its first images are drawn."""
    tab = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
    tab.goto(page.as_uri())
    tab.wait_for_selector(".panel .iou:has-text('.')")
    tab.wait_for_selector("#film img")
    tab.wait_for_timeout(500)  # the other pictures of the film
    return tab.screenshot(full_page=True)


if __name__ == "__main__":
    raise SystemExit(main())
