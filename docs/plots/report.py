"""Draw a page of `gsqtok compare -o` or `gsqtok leaderboard` as a browser shows it; needs playwright and Chromium.

python docs/plots/report.py REPORT.html docs/images/report.jpg
python docs/plots/report.py leaderboard/leaderboard.html docs/images/leaderboard.png 1360   # pixels wide
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright


def main(page: str, image: str, width: str = "1000") -> None:
    """Photograph a report, from top to bottom, as it opens."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": int(width), "height": 800})
        tab.goto(Path(page).resolve().as_uri())
        tab.wait_for_function("[...document.images].every(image => image.complete)")
        shot = Image.open(io.BytesIO(tab.screenshot(full_page=True))).convert("RGB")
        browser.close()
    shot.save(image, quality=88, subsampling="4:4:4", optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
