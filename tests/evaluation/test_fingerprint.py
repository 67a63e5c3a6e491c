"""A set's fingerprint: of its photos, not of their order, names or readers."""

import hashlib

import torch

from gsqtok.evaluation.fingerprint import SetFingerprint


def fingerprint(*batches):
    result = SetFingerprint()
    for batch in batches:
        result.add(batch)
    return result.hexdigest()


def photos(count=4, height=5, width=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def test_one_image_is_its_digest():
    image = photos(1)
    rows = bytes(int(image[0, c, y, x]) for y in range(5) for x in range(3) for c in range(3))
    assert fingerprint(image) == hashlib.sha256(b"5x3" + rows).hexdigest()


def test_order_batches_and_processes_do_not_count():
    images = photos()
    whole = fingerprint(images)
    assert fingerprint(images.flip(0)) == whole
    assert fingerprint(images[:1], images[1:]) == whole
    first, second = SetFingerprint(), SetFingerprint()
    first.add(images[:3])
    second.add(images[3:])
    assert first.hexdigest((second.total,)) == whole


def test_what_counts():
    images = photos()
    changed = images.clone()
    changed[2, 1, 4, 2] ^= 1
    sets = [images, changed, images[:3], torch.cat([images, images[:1]]), torch.cat([images, images[:1], images[:1]])]
    sets += [images.reshape(4, 3, 3, 5), images[:0]]
    assert len({fingerprint(s) for s in sets}) == len(sets)
