"""A zoo of odd sources, fed to every way of reading: the same keys, the same bytes, the same reasons."""

import bz2
import gzip
import io
import itertools
import logging
import lzma
import os
import pickle
import random
import socket
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from gsqtok.data import ImageTransform, decode_pixels, eval_loader, open_source, train_loader
from gsqtok.data.sources import ByNumber
from gsqtok.tokens.crops import Crops
from gsqtok.tokens.manifest import read_manifest
from gsqtok.tokens.run import RunOptions, tokenize

NO_FILE, NOT_REGULAR, LINK = "No such file", "not a regular file", "a link to"
REST, CUT, NOTHING = "the rest of the tar shard", "the tar shard ends before it does", "neither bytes nor a path"
TEXT, EMPTY, BROKEN = "not an image", "zero bytes", "truncated"  # what only decoding finds


def png(number, size=(8, 8)):
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def files(root, content):
    for name, data in content.items():
        path = os.path.join(os.fsencode(root), name if isinstance(name, bytes) else name.encode())
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)
    return root


def tar(members):
    """Members as (name, bytes) or a ``TarInfo`` without any."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            archive.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def struct(values):
    return pa.array(values, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def parquet(path, values, name="image", group=2, **columns):
    pq.write_table(pa.table({name: values, **columns}), path, row_group_size=group)
    return path


# The zoo. Each animal: root -> source, and what its rows are: (key, bytes, or the reason why there are none).
# Bytes may be no image, with the reason that decoding finds.


def nested_folder(root):
    names = ["a.png", "b/a.png", "b/c d/ünï 图.png", "[x]{y}*?.png", "a.b.PNG", "#.png", "'quoted' \"name\".png"]
    files(root, {name: png(i) for i, name in enumerate(names)} | {".hidden.png": b"", "b/.git/x.png": b""})
    return root, [(name, png(names.index(name))) for name in sorted(names)]


def names_that_are_not_utf8(root):
    files(root, {b"caf\xe9.png": png(0), b"caf\\xe9.png": png(1), b"\xff/c.png": png(2), b"z.png": png(3)})
    keys = ["caf\\xe9.png", "caf\\xe9.png#2", "z.png", "\\xff/c.png"]
    return root, list(zip(keys, [png(1), png(0), png(3), png(2)], strict=True))


def broken_images(root):
    data = {
        "a.png": png(0),
        "b.png": b"",
        "c.png": b"no image at all",
        "d.png": png(1, (40, 40))[:900],
        "e.png": png(2),
    }
    reasons = {"b.png": EMPTY, "c.png": TEXT, "d.png": BROKEN}
    return files(root, data), [
        (name, value, *([reasons[name]] if name in reasons else [])) for name, value in data.items()
    ]


def no_regular_files(root):
    files(root, {"a.png": png(0), "z.png": png(1)})
    os.mkfifo(root / "fifo.png")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(root)  # for a socket's path may be short
        server.bind("socket.png")
        os.chdir(here)
    (root / "zero.png").symlink_to("/dev/zero")
    (root / "gone.png").symlink_to("nowhere.png")
    (root / "itself.png").symlink_to("itself.png")
    (root / "same.png").symlink_to("a.png")
    (root / "folder.png").mkdir()
    reasons = {"fifo.png": NOT_REGULAR, "gone.png": NO_FILE, "itself.png": "Too many levels", "same.png": png(0)}
    reasons |= {"socket.png": NOT_REGULAR, "zero.png": NOT_REGULAR, "a.png": png(0), "z.png": png(1)}
    return root, sorted(reasons.items())


def folders_behind_links(root):
    files(root / "elsewhere", {"1.png": png(1)})
    files(root / "in", {"0.png": png(0), "real/2.png": png(2)})
    for name, target in {"b": "../elsewhere", "a": "../elsewhere", "up": ".", "again": "real"}.items():
        (root / "in" / name).symlink_to(target)
    return root / "in", [
        ("0.png", png(0)),
        ("a/1.png", png(1)),
        ("again/2.png", png(2)),
        ("b/1.png", png(1)),
        ("real/2.png", png(2)),
    ]


def several_sources(root):
    files(root, {"x/0.png": png(0), "x/1.png": png(1), "x/no.txt": b"", "y/0.png": png(2), "y/1.png": png(3)})
    files(root, {"t-1.tar": tar([("0.png", png(4))]), "t-2.tar": tar([("0.png", png(5))])})
    parquet(root / "p.parquet", struct([{"bytes": png(6)}]))
    sources = [f"{root}/x/?.png", root / "y/1.png", f"{root}/t-{{1..2}}.tar", root / "p.parquet", root / "y"]
    keys = ["?.png/0.png", "?.png/1.png", "1.png", "t-{1..2}.tar/t-1.tar/0.png", "t-{1..2}.tar/t-2.tar/0.png"]
    keys += ["p-000000", "y/0.png", "y/1.png"]
    return sources, list(zip(keys, [png(i) for i in (0, 1, 3, 4, 5, 6, 2, 3)], strict=True))


def tar_of_odd_names(root):
    long = "ordner-猫" * 30
    members = [("a.png", png(0)), ("a.png", png(1)), ("b.png", png(2)), ("./a.png", png(3)), ("./x/a.jpg", png(4))]
    members += [(f"{long}/{i}.png", png(5 + i)) for i in range(2)] + [("BZ.tiff.png", png(9)), (".hidden.png", b"")]
    keys = ["a.png", "a.png#2", "b.png", "a.png#3", "x/a.jpg", f"{long}/0.png", f"{long}/1.png", "BZ.tiff.png"]
    data = [data for _, data in members]
    return files(root, {"s.tar": tar(members)}), [(f"s.tar/{key}", d) for key, d in zip(keys, data, strict=False)]


def tar_with_a_latin_name(root):
    data = bytearray(tar([("aXb.png", png(0)), ("c.png", png(1))]))
    header = data[:512]
    header[1], header[148:156] = 0xE4, b" " * 8  # Latin-1, and the checksum anew
    header[148:156] = b"%06o\0 " % sum(header)
    data[:512] = header
    return files(root, {"s.tar": bytes(data)}), [("s.tar/a\\xe4b.png", png(0)), ("s.tar/c.png", png(1))]


def compressed_tars(root):
    members = tar([(f"{i}.png", png(i, (60, 60))) for i in range(12)])
    ways = {"gz.tar": gzip.compress, "bz2.tar": bz2.compress, "xz.tar": lzma.compress, "a.tgz": gzip.compress}
    ways |= {"b.tar.bz2": bz2.compress, "c.tar.xz": lzma.compress}
    files(root, {name: compress(members) for name, compress in ways.items()})
    return root, [(f"{name}/{i}.png", png(i, (60, 60))) for name in sorted(ways) for i in range(12)]


def tar_of_everything_but_files(root):
    kinds = {"hard.png": (tarfile.LNKTYPE, "a.png"), "soft.png": (tarfile.SYMTYPE, "a.png")}
    kinds |= {"fifo.png": (tarfile.FIFOTYPE, ""), "zero.png": (tarfile.CHRTYPE, "")}
    members = [("a.png", png(0)), *(special(name, *kind) for name, kind in kinds.items())]
    members += [special("folder.png", tarfile.DIRTYPE), ("b.png", png(1))]
    reasons = {"hard.png": LINK, "soft.png": LINK, "fifo.png": NOT_REGULAR, "zero.png": NOT_REGULAR}
    rows = [("a.png", png(0)), *reasons.items(), ("b.png", png(1))]
    return files(root, {"s.tar": tar(members)}), [(f"s.tar/{name}", value) for name, value in rows]


def tar_with_sidecars(root):
    members = [("a/0.cls", b"3"), ("a/0.png", png(0)), ("a/0.txt", "Bild ä".encode()), ("a/0.json", b"{}")]
    members += [("1.left.png", png(1)), ("1.right.png", png(2)), ("index.json", b"{}"), ("photo.heic", b"x")]
    names = ["a/0.png", "1.left.png", "1.right.png"]
    return files(root, {"s.tar": tar(members)}), [(f"s.tar/{name}", png(i)) for i, name in enumerate(names)]


def damaged_tars(root):
    whole = tar([(f"{i}.png", png(i, (30, 30))) for i in range(6)])
    place = whole.index(b"4.png")
    header = whole[:place] + b"x" * 200 + whole[place + 200 :]
    packed = gzip.compress(whole)
    content = {
        "a-content.tar": whole[: place + 700],
        "b-header.tar": whole[: place + 100],
        "c-garbage.tar": header,
        "d-empty.tar": b"",
        "e-text.tar": b"not a tar file at all" * 50,
        "f-two.tar": tar([("0.png", png(0))]) + tar([("1.png", png(1))]),
        "g-packed.tgz": packed[: len(packed) - 4000],
        "h-good.tar": tar([("0.png", png(0))]),
    }
    rows = []
    ends = {
        "a-content.tar": [("4.png", CUT), ("(unreadable after 4.png: unexpected end of data)", REST)],
        "b-header.tar": [("(unreadable after 3.png: damaged header)", REST)],
        "c-garbage.tar": [("(unreadable after 3.png: damaged header)", REST)],
        "g-packed.tgz": [("4.png", "ended before"), ("(unreadable after 4.png: Compressed file ended before", REST)],
    }
    for name in sorted(content):
        own = [(f"{i}.png", png(i, (30, 30))) for i in range(4)] + ends[name] if name in ends else []
        own += (
            [("(unreadable after the start: not a tar archive)", REST)] if name in ("d-empty.tar", "e-text.tar") else []
        )
        own += [("0.png", png(0))] if name in ("f-two.tar", "h-good.tar") else []
        own += [("(unreadable after 0.png: the archive ends, but not the file)", REST)] if name == "f-two.tar" else []
        rows += [(f"{name}/{key}", value) for key, value in own]
    return files(root, content), rows


def parquet_columns_of_images(root):
    images = [png(i) for i in range(4)]
    plain = {"b-plain": pa.binary(), "c-large": pa.large_binary()}
    parquet(root / "a-struct.parquet", struct([{"bytes": data, "path": "x.png"} for data in images]))
    for name, kind in plain.items():
        parquet(root / f"{name}.parquet", pa.array(images, kind), "png", key=list("wxyz"))
    parquet(root / "d-dictionary.parquet", pa.array(images, pa.binary()).dictionary_encode(), "img")
    parquet(root / "e-empty.parquet", struct([]))
    other = pa.StructArray.from_arrays([pa.array(images, pa.large_binary()), pa.array(range(4))], ["bytes", "size"])
    parquet(root / "f-other.parquet", other, mask=pa.array([b"m"] * 4, pa.binary()))
    names = ["a-struct", *plain, "d-dictionary", "f-other"]
    return root, [(f"{name}-{i:06d}", data) for name in names for i, data in enumerate(images)]


def parquet_with_paths(root):
    files(root / "images", {"1.png": png(1), "no.png": b""})
    values = [{"bytes": png(0)}, {"path": "images/1.png"}, None, {"bytes": None, "path": None}, {"path": "absent.png"}]
    values += [{"path": str(root / "images/1.png")}, {"bytes": b"", "path": "images/1.png"}, {"path": "nu\0l.png"}]
    reasons = [png(0), png(1), NOTHING, NOTHING, NO_FILE, png(1), (b"", EMPTY), "cannot be read: "]
    parquet(root / "p.parquet", struct(values))
    keys = [f"p-{i:06d}" for i in range(len(values))]
    return root / "p.parquet", [(k, *r) if isinstance(r, tuple) else (k, r) for k, r in zip(keys, reasons, strict=True)]


def parquet_with_nested_columns(root):
    boxes = pa.array(
        [[{"x": 1, "tags": ["a"]}], [], None], pa.list_(pa.struct([("x", pa.int8()), ("tags", pa.list_(pa.string()))]))
    )
    captions = pa.array(["one", None, "one"]).dictionary_encode()
    parquet(
        root / "p.parquet",
        struct([{"bytes": png(i)} for i in range(3)]),
        label=[1, None, 3],
        boxes=boxes,
        caption=captions,
    )
    return root, [(f"p-{i:06d}", png(i)) for i in range(3)]


def parquet_with_a_damaged_row_group(root):
    path = parquet(root / "p.parquet", struct([{"bytes": png(i)} for i in range(6)]), group=2)
    column = pq.read_metadata(path).row_group(1).column(0)
    data = bytearray(path.read_bytes())
    data[column.dictionary_page_offset or column.data_page_offset :][:40] = b""
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + 40] = b"\xff" * 40
    path.write_bytes(data)
    rows = [(f"p-{i:06d}", png(i)) for i in range(6)]
    rows[2:4] = [(key, "row group cannot be read") for key, _ in rows[2:4]]
    return path, rows


ZOO = [
    nested_folder,
    names_that_are_not_utf8,
    broken_images,
    no_regular_files,
    folders_behind_links,
    several_sources,
    tar_of_odd_names,
    tar_with_a_latin_name,
    compressed_tars,
    tar_of_everything_but_files,
    tar_with_sidecars,
    damaged_tars,
    parquet_columns_of_images,
    parquet_with_paths,
    parquet_with_nested_columns,
    parquet_with_a_damaged_row_group,
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("arrow-cache")))


class Readers(torch.utils.data.Dataset):
    def __init__(self, readers):
        self.readers = readers

    def __len__(self):
        return len(self.readers)

    def __getitem__(self, number):
        return list(self.readers[number]())


def whole_rows(source):
    return [row for span in source.spans() for row in source.rows(span)]


def in_spans(size):
    def read(source):
        rows = []
        for span in source.spans(size):
            own = list(source.rows(span))
            assert [row.key for row in own] == source.keys(span)
            assert 0 < len(own) == span.length <= size
            rows += own
        return rows

    return read


def in_any_order(source):
    spans = list(source.spans(2))
    order = random.Random(0).sample(range(len(spans)), len(spans))
    rows = {i: list(source.rows(spans[i])) for i in order}
    return list(itertools.chain.from_iterable(rows[i] for i in range(len(spans))))


def pickled(source):
    return [row for span in source.spans(3) for row in pickle.loads(pickle.dumps(source.reader(span)))()]


def in_workers(source):
    readers = Readers([source.reader(span) for span in source.spans(3)])
    loader = DataLoader(readers, batch_size=None, num_workers=2, collate_fn=list, multiprocessing_context="fork")
    return list(itertools.chain.from_iterable(loader))


def by_number(source):
    rows = ByNumber(source)
    numbers = random.Random(1).sample(range(len(rows)), len(rows))
    taken = dict(zip(numbers, rows.take(numbers), strict=True))
    return [taken[i] for i in range(len(rows))]


WAYS = [whole_rows, in_spans(1), in_spans(3), in_spans(1000), in_any_order, pickled, in_workers, by_number]


@pytest.fixture(params=ZOO, ids=lambda animal: animal.__name__)
def animal(request, tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    return request.param(root)


def rows_of(expected):
    """(key, bytes, reason) of each row; a reason need only begin so."""
    return [(key, None, value) if isinstance(value, str) else (key, value, None) for key, value, *_ in expected]


def check(rows, expected):
    assert len(rows) == len(expected)
    for row, (key, data, reason) in zip(rows, rows_of(expected), strict=True):
        assert row.key == key or (reason == REST and row.key.startswith(key)), key
        assert row.data == data, key
        assert row.reason is None if reason is None else reason in row.reason, key


def test_every_way_of_reading_gives_the_same_rows(animal):
    source, expected = animal
    opened = open_source(source)
    assert len(opened) == len(expected)
    first = whole_rows(opened)
    check(first, expected)
    assert opened.all_keys() == [row.key for row in first]
    assert len(set(opened.all_keys())) == len(first)
    for way in WAYS:
        rows = way(open_source(source))
        assert [(row.key, row.data, row.reason) for row in rows] == [(r.key, r.data, r.reason) for r in first], way
    assert open_source(source).digest == opened.digest


@pytest.fixture
def decoded(animal):
    """Pixels of each image, and the reason of each skipped one."""
    source, expected = animal
    rows = whole_rows(open_source(source))
    images, skipped = {}, {}
    for row, (_, value, *reason) in zip(rows, expected, strict=True):
        if isinstance(value, str):
            skipped[row.key] = row.reason
        elif reason:
            skipped[row.key] = reason[0]
        else:
            images[row.key] = decode_pixels(value)
    return source, images, skipped


def agree(found, expected):
    assert found.keys() == expected.keys()
    assert all(reason in found[key] for key, reason in expected.items())


@pytest.mark.parametrize(("workers", "world_size"), [(0, 1), (2, 1), (0, 3)])
def test_evaluation_sees_the_same(decoded, workers, world_size):
    source, images, skipped = decoded
    found, reasons = {}, {}
    for rank in range(world_size):
        options = {"batch_size": 4, "workers": workers, "rank": rank, "world_size": world_size}
        loader = eval_loader(open_source(source), ImageTransform(None, "none"), **options)
        for batch in loader:
            pixels = ((batch["image"] + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
            found |= dict(zip(batch["keys"], pixels, strict=True))
        reasons |= loader.skipped.reasons
    assert list(found) == list(images)
    assert all(np.array_equal(found[key], images[key]) for key in images)
    agree(reasons, skipped)


@pytest.mark.parametrize("streaming", [False, True])
def test_training_sees_the_same(decoded, streaming):
    source, images, skipped = decoded
    keys, reasons = set(), {}
    loader = train_loader(
        open_source(source),
        ImageTransform(8),
        batch_size=len(images) + len(skipped),
        streaming=streaming,
        shuffle_buffer=5,
    )
    for batch in itertools.islice(loader, 2):
        keys |= set(batch["keys"])
        reasons |= dict(batch["skipped"])
    assert keys == images.keys()
    agree(reasons, skipped)


def test_tokenizing_sees_the_same(decoded, tmp_path, tiny_tokenizer):
    source, images, skipped = decoded
    options = RunOptions(crops=Crops(8), shard_size=5, workers=0)
    tokenize(tiny_tokenizer, source, tmp_path / "tokens", options)
    units = [
        tmp_path / "tokens" / unit["file"] for unit in read_manifest(tmp_path / "tokens")["units"] if "file" in unit
    ]
    assert [key for unit in units for key in pq.read_table(unit)["key"].to_pylist()] == list(images)
    reasons = pq.read_table(tmp_path / "tokens/skipped.parquet")
    agree(dict(zip(reasons["key"].to_pylist(), reasons["reason"].to_pylist(), strict=True)), skipped)


@pytest.mark.parametrize("animal", [parquet_with_nested_columns, tar_with_sidecars], indirect=True)
def test_extra_columns_are_the_same(animal, tmp_path, tiny_tokenizer):
    source, _ = animal
    wanted = ("label", "caption", "boxes", "absent")
    opened = open_source(source, columns=wanted)
    names = [field.name for field in opened.columns]
    rows = [row.columns for row in whole_rows(opened)]
    box = [[{"x": 1, "tags": ["a"]}], [], None]
    if "boxes" in names:
        assert rows == [
            {"label": [1, None, 3][i], "boxes": box[i], "caption": ["one", None, "one"][i]} for i in range(3)
        ]
    else:
        assert rows == [{"label": 3, "caption": "Bild ä"}, *[{"label": None, "caption": None}] * 2]
    for way in (in_spans(1), in_spans(1000), in_any_order, pickled, in_workers):
        assert [row.columns for row in way(opened)] == rows, way
    batches = list(eval_loader(opened, ImageTransform(8), batch_size=2))
    assert [{name: batch[name][i] for name in names} for batch in batches for i in range(len(batch["keys"]))] == rows
    options = RunOptions(crops=Crops(8), columns=wanted, workers=0)
    tokenize(tiny_tokenizer, source, tmp_path / "tokens", options)
    assert pq.read_table(tmp_path / "tokens/data", columns=names).to_pylist() == rows


def test_what_is_no_image_is_counted_in_the_log(tmp_path, caplog):
    files(tmp_path / "folder", {"0.png": png(0), "no.heic": b"x", "notes": b"x"})
    tar_with_sidecars(tmp_path)
    with caplog.at_level(logging.WARNING, "gsqtok.data"):
        for source in (tmp_path / "folder", tmp_path / "s.tar"):
            for way in (whole_rows, in_spans(2), by_number):
                way(open_source(source))
    told = [record.message.removeprefix(f"{tmp_path}/") for record in caplog.records]
    assert told.count("s.tar: left out 2 files that are not images: 'index.json', 'photo.heic'") == 1
    assert "folder: left out 2 files that are not images: 'no.heic', 'notes'" in told
    assert len(set(told)) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty", {}, "is empty"),
        ("texts", {"a.txt": b"", "b.txt": b""}, "no image, parquet file or tar shard among the 2 files"),
        ("mixed", {"a.png": png(0), "b.tar": tar([])}, "1 image files, 1 tar files"),
    ],
)
def test_sources_that_cannot_be_opened(tmp_path, name, content, message):
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=message):
        open_source(files(tmp_path / name, content))


def test_nested_images_are_no_column(tmp_path):
    lists = pa.array([[png(0)], [png(1), png(2)]], pa.list_(pa.binary()))
    with pytest.raises(ValueError, match="no column of encoded images, only label, image"):
        open_source(parquet(tmp_path / "a.parquet", [1, 2], "label", image=lists))
    with pytest.raises(ValueError, match="several image columns, left, right: call one of them 'image'"):
        open_source(parquet(tmp_path / "b.parquet", [b"x"], "left", right=pa.array([b"x"])))


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the network: a data set as ``load_dataset`` returns it, whole and in shards."""
    import datasets

    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    values = {"img": [{"bytes": png(i), "path": None} for i in range(7)], "label": [0, 1, 0, 1, 0, 1, 1]}
    whole = datasets.Dataset.from_dict(values | {"img": [*values["img"][:6], None]}, features=features)
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name, split, streaming: whole.to_iterable_dataset(3) if streaming else whole
    )


def test_a_data_set_of_the_hub(hub, tmp_path, tiny_tokenizer):
    expected = [(f"train-{i:06d}", png(i)) for i in range(6)] + [("train-000006", NOTHING)]
    source = open_source("nobody/images", split="train", columns=("label", "caption"))
    assert [(field.name, str(field.type)) for field in source.columns] == [("label", "int64")]
    for way in WAYS:
        check(way(source), expected)
    for way in (whole_rows, in_spans(2), in_workers):
        assert [row.columns["label"] for row in way(source)] == [0, 1, 0, 1, 0, 1, 1]
    tokenize(tiny_tokenizer, "nobody/images", tmp_path / "tokens", RunOptions(crops=Crops(8), split="train", workers=0))
    assert pq.read_table(tmp_path / "tokens/data")["key"].to_pylist() == [key for key, _ in expected[:6]]


def test_a_streamed_data_set_of_the_hub(hub):
    keys = ["0-000000", "0-000001", "0-000002", "1-000000", "1-000001", "2-000000", "2-000001"]
    expected = [(f"train-0000{key}", png(i)) for i, key in enumerate(keys[:6])] + [("train-00002-000001", NOTHING)]
    source = open_source("nobody/images", split="train", columns=("label",), streaming=True)
    with pytest.raises(TypeError, match="not known while it is streamed"):
        len(source)
    for way in (whole_rows, pickled, in_workers, by_number):
        check(way(source), expected)
    assert [row.columns["label"] for row in whole_rows(source)] == [0, 1, 0, 1, 0, 1, 1]
    for workers in (0, 2):
        loader = eval_loader(source, ImageTransform(8), batch_size=2, workers=workers)
        assert [key for batch in loader for key in batch["keys"]] == [key for key, _ in expected[:6]]
        assert list(loader.skipped.reasons) == ["train-00002-000001"]
    for ranks in (2, 3):  # by rows, and by shards
        own = [
            eval_loader(source, ImageTransform(8), batch_size=2, rank=rank, world_size=ranks) for rank in range(ranks)
        ]
        found = [key for loader in own for batch in loader for key in batch["keys"]]
        assert sorted(found) == [key for key, _ in expected[:6]]
        assert not any(loader.in_order for loader in own)
    batch = next(iter(train_loader(source, ImageTransform(8), batch_size=7, streaming=True, shuffle_buffer=3)))
    assert set(batch["keys"]) == {key for key, _ in expected[:6]}
