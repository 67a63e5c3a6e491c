"""The page as it opens, for docs/app.md: python docs/plots/page.py docs/images/app.png

Needs: pip install -e '.[app]' playwright, and Chromium.
"""

import shutil
import sys

from playwright.sync_api import sync_playwright

from gsqtok.app.serve import serve
from gsqtok.tokenizer import ImageTokenizer


def shoot(address: str, output: str) -> None:
    """Write an image of the page once its results are there."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1280, "height": 1130})
        tab.goto(address)
        tab.get_by_text("JPEG of the same size").last.wait_for(state="attached", timeout=60_000)
        tab.wait_for_timeout(5000)  # until the images are drawn
        tab.screenshot(path=output)
        browser.close()


if __name__ == "__main__":
    blocks, address = serve({"embedded": ImageTokenizer.from_pretrained()})
    shoot(address, sys.argv[1])
    blocks.close()
