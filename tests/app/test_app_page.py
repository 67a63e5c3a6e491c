"""The page, served to this machine and opened in a browser: upload, reconstruct, swap, and what must be refused."""

import io
import json
import socket
import struct
import zlib

import numpy as np
import processes
import pytest
import torch
from PIL import Image

gradio = pytest.importorskip("gradio")
httpx = pytest.importorskip("httpx")
pytest.importorskip("matplotlib")

from gsqtok.app import views  # noqa: E402
from gsqtok.app.actions import DEMO, Actions  # noqa: E402
from gsqtok.app.serve import serve  # noqa: E402
from gsqtok.tokenizer import ImageTokenizer, TokenizerConfig  # noqa: E402

LABELS = ("one", "<b>two")


@pytest.fixture(scope="module")
def tokenizers():
    tokenizers = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for label, dim in zip(LABELS, (6, 8), strict=True):
            quantizer = {"name": "gsq", "groups": 2, "codebook_size": 64}
            config = TokenizerConfig(
                latent_dim=dim,
                channels=32,
                multipliers=(1, 1, 1),
                encoder_blocks=1,
                decoder_blocks=1,
                encoder_middle_blocks=1,
                decoder_middle_blocks=1,
                quantizer=quantizer,
            )
            tokenizers[label] = ImageTokenizer(config).eval()
    return tokenizers


@pytest.fixture(scope="module")
def address(tokenizers):
    blocks, address = serve(tokenizers, max_pixels=300 * 300, max_mb=1)
    yield address
    blocks.close()


@pytest.fixture
def client():
    with httpx.Client(timeout=processes.PATIENCE) as client:
        yield client


@pytest.fixture
def tab(browser, address):
    tab = browser.new_page(viewport={"width": 1200, "height": 900})
    tab.problems, tab.requests = [], []
    tab.on("pageerror", lambda error: tab.problems.append(str(error)))
    tab.on("request", lambda request: tab.requests.append(request.url))
    tab.goto(address)
    tab.wait_for_selector("#upload input[type=file]", state="attached")
    wait_for(tab, "#line", next(iter(DEMO)))  # one of ours is there already
    wait_for(tab, "#metrics", "tokens of one")
    yield tab
    tab.close()
    assert tab.problems == []
    assert all(url.startswith((address, "data:", "blob:")) for url in tab.requests)


def png(width, height):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def give(tab, where, data, name="a.png"):
    tab.set_input_files(f"{where} input[type=file]", {"name": name, "mimeType": "image/png", "buffer": data})


def wait_for(tab, selector, text):
    tab.wait_for_function(
        "([selector, text]) => document.querySelector(selector)?.textContent.includes(text)", arg=[selector, text]
    )


def size(tab, selector):
    shown = (
        "s => { const i = document.querySelector(s); return i?.naturalWidth > 0 && [i.naturalWidth, i.naturalHeight] }"
    )
    return tab.wait_for_function(shown, arg=selector).json_value()  # at once: the page may put another in its place


def test_upload_reconstruct_and_point_at_a_token(tab, tokenizers):
    give(tab, "#upload", png(60, 40))
    wait_for(tab, "#line", "60 x 40 pixels, 10 x 15 positions of 2 tokens")
    assert "Shrunk" not in tab.text_content("#line")
    assert size(tab, "#slider img") == [60, 40]
    wait_for(tab, "#metrics", "tokens of one")
    assert "225" in tab.text_content("#metrics")  # 10 * 15 * 2 tokens of 6 bits
    assert tab.locator("#errors img").count() == 4
    tab.get_by_role("tab", name="Tokens").click()
    assert size(tab, "#maps img")[0] > 500
    tab.click("#maps img", position={"x": 100, "y": 100})
    wait_for(tab, "#position", "row")
    tab.wait_for_function(r"/\d \(\d\.\d\d\)/.test(document.querySelector('#neighbours').textContent)")
    tab.get_by_role("tab", name="Codebook").click()
    assert size(tab, "#sphere img") == size(tab, "#usage img")


def test_another_tokenizer_takes_the_same_image(tab):
    give(tab, "#upload", png(60, 40))
    wait_for(tab, "#metrics", "tokens of one")
    tab.click("#tokenizer input")
    tab.get_by_role("option", name="<b>two").click()
    wait_for(tab, "#metrics", "tokens of <b>two")


def test_a_large_image_goes_in_tiles_and_its_tokens_stay_in_sight(tab, tokenizers, monkeypatch):
    monkeypatch.setattr(views, "WHOLE", 100 * 100)
    monkeypatch.setattr(views, "TILE", 32)
    asked, encode = [], tokenizers["one"].encode
    monkeypatch.setattr(
        tokenizers["one"], "encode", lambda given, **more: asked.append(more["tile"]) or encode(given, **more)
    )
    give(tab, "#upload", png(298, 260))
    wait_for(tab, "#line", "298 x 260 pixels, 65 x 75 positions of 2 tokens")
    assert "Shrunk" not in tab.text_content("#line")
    assert size(tab, "#slider img") == [298, 260]
    wait_for(tab, "#metrics", "tokens of one")
    assert asked == [32]
    tab.get_by_role("tab", name="Tokens").click()
    assert size(tab, "#maps img") == [3 * 75 * 2 + views.GAP, 3 * 65 + views.CAPTION]
    assert size(tab, "#closer img") == [8 * 32 * 2 + views.GAP, 8 * 32 + views.CAPTION]
    tab.click("#maps img", position={"x": 1, "y": views.CAPTION + 5})  # scaled or not, by its left edge
    wait_for(tab, "#position", "column 1")
    scale = tab.locator("#closer img").bounding_box()["width"] / (8 * 32 * 2 + views.GAP)
    tab.click("#closer img", position={"x": scale * (8 * 31 + 4), "y": scale * (views.CAPTION + 8 * 1 + 4)})
    wait_for(tab, "#position", "row 2, column 32")
    tab.wait_for_function(r"/\d \(\d\.\d\d\)/.test(document.querySelector('#neighbours').textContent)")


def test_the_progress_of_tiles_is_told(tokenizers, monkeypatch):
    """By the call that Gradio shows; it may leave out some of what it is told, so that no page can be waited for."""
    monkeypatch.setattr(views, "WHOLE", 100 * 100)
    monkeypatch.setattr(views, "TILE", 32)
    do, told = Actions(tokenizers, 300 * 300), []
    key, _, _ = do.upload(png(298, 260), None)
    do.show(key, "one", None, progress=lambda *given, **more: told.append((*given, more)))
    for what in ("encoding", "decoding"):
        counts = [given[0] for given in told if given[1] == what]
        assert all(given[2] == {"unit": "tiles"} for given in told if given[1] == what)
        total = counts[-1][1]
        assert counts == [(done, total) for done in range(1, total + 1)]
        assert total > 1


def test_an_image_beyond_the_limit_is_shrunk_and_the_page_says_so(tab):
    assert "Files of up to 1 MB and 67 megapixels are taken" in tab.text_content("body")
    give(tab, "#upload", png(600, 200))
    wait_for(tab, "#line", "Shrunk from 600 x 200")
    assert size(tab, "#slider img") == [519, 173]
    assert not tab.locator("#closer img").is_visible()


def test_swap_two_images(tab):
    give(tab, "#upload", png(60, 40))
    wait_for(tab, "#line", "60 x 40")
    tab.get_by_role("tab", name="Swap").click()
    assert tab.locator("#swap").is_disabled()
    assert "Choose a second image" in tab.text_content("#swap")
    tab.click("#other-demo input")
    tab.get_by_role("option", name=next(iter(DEMO))).click()
    wait_for(tab, "#other-line", f"Second: {next(iter(DEMO))}")
    tab.click("#swap")
    wait_for(tab, "#swapped", "second, with tokens of the first")
    assert size(tab, "#swapped img") == [60, 40]
    assert tab.locator("#swapped img").count() == 4


def test_a_broken_file_is_answered_and_the_page_goes_on(tab):
    whole = png(60, 40)
    give(tab, "#upload", whole[: len(whole) // 2])
    wait_for(tab, "body", "This file is not shown")
    tab.wait_for_function("document.querySelector('#line').textContent.trim() == ''")  # nothing of the last image stays
    assert "a.png" not in tab.text_content("#upload")
    tab.get_by_role("tab", name="Swap").click()
    wait_for(tab, "#swap", "Choose a first image above")
    assert tab.locator("#swap").is_disabled()
    tab.click("[data-testid=toast-close]")
    give(tab, "#upload", whole)
    wait_for(tab, "#line", "60 x 40")


def test_a_file_beyond_the_limit_is_refused(client, address):
    answers = [
        client.post(f"{address}gradio_api/upload", files={"files": ("a.png", bytes(size), "image/png")}).status_code
        for size in (900_000, 1_100_000)
    ]
    assert answers == [200, 413]


@pytest.mark.parametrize("path", ["/etc/passwd", "../../../etc/passwd", "https://example.com/a.png", __file__])
def test_no_path_or_address_of_a_client_is_opened(client, address, path):
    config = client.get(f"{address}config").json()
    fields = {c["id"] for c in config["components"] if c["props"].get("elem_id") in ("upload", "other-upload")}
    events = [d for d in config["dependencies"] if {target[0] for target in d["targets"]} & fields]
    assert len(events) == 2
    for event in events:
        data = {"path": path, "url": path, "meta": {"_type": "gradio.FileData"}}
        call = {"data": [data, None], "fn_index": event["id"], "session_hash": "abc"}
        client.post(f"{address}gradio_api/queue/join", json=call).raise_for_status()
        with client.stream("GET", f"{address}gradio_api/queue/data", params={"session_hash": "abc"}) as told:
            messages = [json.loads(line[5:]) for line in told.iter_lines() if line.startswith("data:")]
        (end,) = [message for message in messages if message["msg"] == "process_completed"]
        assert not end["success"]
        assert "not shown" not in str(end)  # what is answered to bytes that are no image: none were read
        assert ("Addresses are not fetched" in str(end)) == path.startswith("https:")


def test_files_of_the_machine_are_not_served(client, address):
    for path in ("/etc/passwd", __file__, str(DEMO["coffee"])):
        assert client.get(f"{address}gradio_api/file={path}").status_code in (403, 404)


def test_only_this_machine_by_its_own_name(client, address):
    assert address.startswith("http://127.0.0.1:")
    assert client.get(address).headers["content-security-policy"].startswith("default-src 'self'")
    assert client.get(address, headers={"Host": "evil.example"}).status_code == 400


def header(width, height):
    """A PNG that announces a size, and breaks off."""
    start = png(1, 1)
    ihdr = b"IHDR" + struct.pack(">II", width, height) + start[24:29]
    return start[:12] + ihdr + struct.pack(">I", zlib.crc32(ihdr)) + start[33:]


def test_a_huge_image_is_refused_by_the_page_s_own_limit(tab):
    give(tab, "#upload", header(20_000, 20_000))
    wait_for(tab, "body", "20,000 x 20,000 pixels are more than the 67 megapixels that this page takes. Choose")


def test_an_animation_says_that_it_is_one(tab):
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "green", "blue")]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    give(tab, "#upload", file.getvalue(), "a.gif")
    wait_for(tab, "#line", "The first of 3 frames")


@pytest.mark.parametrize(
    "path",
    [
        "gradio_api/file=http://evil.example/x",
        "gradio_api/file=HTTPS://evil.example/x",
        "gradio_api/file=http:%2f%2fevil.example/x",
        "gradio_api/file%3dhttp%3A%2F%2Fevil.example/x",
        "gradio_api/file=%2568ttp://evil.example/x",
        "gradio_api/FILE=ftp://evil.example/x",
        "gradio_api/file=//evil.example/x",
        "gradio_api/file=%20http://evil.example/x",
        "gradio_api/proxy=https://evil.hf.space/x",
        "file=http://evil.example/x",
    ],
)
def test_no_address_is_looked_up(address, path, monkeypatch):
    asked = []
    real = socket.getaddrinfo

    def resolve(host, *more, **options):
        if str(host) not in ("127.0.0.1", "localhost"):
            asked.append(host)
            raise socket.gaierror("no name is asked for here")
        return real(host, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    port = int(address.rstrip("/").rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port)) as raw:  # a client library would tidy the path
        raw.sendall(f"GET /{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: raw.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 403")
    assert asked == []


def test_uploads_come_from_this_page_and_one_at_a_time(client, address):
    one = {"files": ("a.png", png(8, 8), "image/png")}
    upload = f"{address}gradio_api/upload"
    assert client.post(upload, files=one).status_code == 200
    assert client.post(upload, files=one, headers={"Origin": address.rstrip("/")}).status_code == 200
    assert client.post(upload, files=one, headers={"Origin": "http://evil.example"}).status_code == 403
    assert client.post(upload, files=one, headers={"Origin": "null"}).status_code == 403
    assert client.post(upload, files=[("files", one["files"])] * 50).status_code == 413


def test_it_starts_on_a_machine_that_is_slow_to_answer(client, tokenizers, monkeypatch):
    monkeypatch.setattr("gradio.networking.url_ok", lambda url: False)
    blocks, address = serve(tokenizers)
    assert client.get(address).status_code == 200
    blocks.close()


def test_limits_and_an_empty_page_are_refused(tokenizers):
    with pytest.raises(ValueError, match="needs a tokenizer"):
        serve({})
    with pytest.raises(ValueError, match="positive"):
        serve(tokenizers, max_pixels=0)
