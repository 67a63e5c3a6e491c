import gc
import logging
import os
import shutil
import sys

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("no clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no clock")
# Before anything imports PyTorch. One thread rounds alike everywhere; two on a busy core would wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports the hub's library, which would try five times
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def pytest_collection_finish():
    """What is imported by now lives to the end: the collector need not look through it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)
    if "torch" in sys.modules:
        from torch.fx import config

        # a stack for every node of every graph that is traced, which takes a sixth of the time and no test looks at
        config.do_not_emit_stack_traces = True
    if processes := sys.modules.get("processes"):
        processes.serve()  # before the package starts the same server for decoding, without what commands import


@pytest.fixture(autouse=True)
def _no_trace_log(monkeypatch):
    """PyTorch's log of all that it traces would be made and collected by pytest, record by record."""
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "handlers", [])


@pytest.fixture
def tiny_config():
    """An f4 tokenizer of two tokens a position, small enough for any test."""
    from gsqtok.tokenizer import TokenizerConfig

    return TokenizerConfig(
        latent_dim=8,
        channels=32,
        multipliers=(1, 1, 2),
        encoder_blocks=1,
        decoder_blocks=1,
        encoder_middle_blocks=1,
        decoder_middle_blocks=1,
        quantizer={"name": "gsq", "groups": 2, "codebook_size": 64},
    )


@pytest.fixture
def tiny_tokenizer(tiny_config):
    import torch  # not above: the process that only hands tests out to others would wait for it

    from gsqtok.tokenizer import ImageTokenizer

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ImageTokenizer(tiny_config).eval()


@pytest.fixture(scope="module")
def browser():
    """The system's Chromium, without a window."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no chromium; on Debian: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        open_page = browser.new_page

        def new_page(**options):
            page = open_page(**options)
            page.set_default_timeout(180_000)  # milliseconds; a step takes less than a second on a free machine
            return page

        browser.new_page = new_page
        yield browser
        browser.close()
