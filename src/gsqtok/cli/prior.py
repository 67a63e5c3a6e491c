"""gsqtok prior: models over grids of tokens."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gsqtok.cli.options import check_output_file, console, messages, print_rows, progress, resolve_device

if TYPE_CHECKING:
    import gsqtok.generation.config
    from gsqtok.generation.prior import Prior
    from gsqtok.tokens import TokenDataset


def train(recipe: str | None, config: gsqtok.generation.config.PriorConfig, *, resume: bool = False) -> None:
    """Train a prior: a transformer over the tokens of a token data set, which gsqtok tokenize writes.

    The recipe is a YAML file or the name of one that comes with the package (gsqtok recipes ls, those that begin with
    prior-); --a.b VALUE overrides its values. The run's folder holds its configuration, checkpoints, curves,
    metrics.jsonl and the prior: Prior.from_pretrained("runs/prior").

    On SIGTERM, SIGUSR1 or Ctrl-C the run saves a checkpoint and ends with status 75; a second signal ends it at once.

    Args:
        resume: go on from the newest checkpoint in the output folder

    Example:
          gsqtok prior train prior-64 --data.train tokens/ --data.validation tokens-val/ --output runs/prior
          gsqtok prior train prior-64 --data.train tokens/ --data.label label --model.head masked
    """
    from gsqtok.generation import train as training

    training.train(config, resume=resume)


def evaluate(
    prior: str,
    tokens: str,
    *,
    label: str | None = None,
    limit: int | None = None,
    samples: int = 0,
    images: str | None = None,
    split: str | None = None,
    features: str | None = None,
    weights: str | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    guidance: float = 1.0,
    steps: int = 16,
    seed: int = 0,
    output: str | None = None,
    batch_size: int = 32,
    device: str | None = None,
) -> None:
    """Measure how predictable tokens are: bits per token, position and pixel under a prior.

    They stand beside the fixed length of the tokens and the entropy of their frequencies. With --samples, the Frechet
    distance of so many samples, too.

    Args:
        tokens: a token data set of held-out images
        label: the column of classes (default: measure without classes)
        limit: measure only the first so many images
        samples: draw so many images and compare them
        images: the images that samples are compared with, cut to squares of the samples' size (default: the decoded
            tokens)
        features: network of the Frechet distance: inception, or timm:NAME (default: inception where its weights are)
        weights: file with the weights of --features (default: the cache, else a download)
        temperature: of the samples
        top_k: of the samples
        top_p: of the samples
        guidance: of the samples; needs --label
        steps: of the masked head
        seed: of the samples
        output: write the result to this JSON file
        batch_size: images at a time

    Example:
          gsqtok prior evaluate runs/prior tokens-val/ -o prior.json
          gsqtok prior evaluate runs/prior tokens-val/ --samples 5000 --features timm:tf_efficientnet_lite0
    """
    from gsqtok.evaluation import build_features
    from gsqtok.generation.evaluate import frechet_distance, sampled_images
    from gsqtok.generation.sampling import SamplingOptions
    from gsqtok.io import atomic_write, json_values
    from gsqtok.tokens import TokenDataset

    if output:
        check_output_file(output)
    model = _load(prior, device)
    dataset = TokenDataset(tokens, columns=() if label is None else (label,))
    on_gpu = model.device.type == "cuda"
    result = _predicted(model, dataset, label, limit, batch_size)
    result |= {"prior": model.fingerprint(), "head": model.config.head, "tokenizer": model.vocabulary.tokenizer}
    result["parameters"] = sum(p.numel() for p in model.parameters())
    if samples:
        network, tokenizer = build_features(features or "inception", weights), dataset.tokenizer().to(model.device)
        options, began = SamplingOptions(temperature, top_k, top_p, guidance, steps), time.perf_counter()
        how: dict[str, Any] = {
            "by_class": label is not None,
            "batch_size": batch_size,
            "seed": seed,
            "autocast": on_gpu,
        }
        drawn = [batch.cpu() for batch in sampled_images(model, tokenizer, samples, options=options, **how)]
        result["samples_per_second"] = samples / (time.perf_counter() - began)
        real = _real(dataset, tokenizer, images, split, drawn[0].shape[-1], batch_size)
        where = model.device if on_gpu else resolve_device("cpu")
        result[f"frechet_distance{network.suffix}"] = frechet_distance(drawn, real, network, where)
        result |= {"samples": samples, "sampling": vars(options), "compared_with": images or "decoded tokens"}
    _show(result)
    if output:
        with atomic_write(output) as temporary:
            temporary.write_text(json.dumps(json_values(result), indent=1) + "\n")


def sample(
    prior: str,
    model: str | None,
    *,
    output: str,
    number: int = 16,
    classes: list[int] | None = None,
    rows: int | None = None,
    columns: int | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    guidance: float = 1.0,
    steps: int = 16,
    seed: int = 0,
    device: str | None = None,
) -> None:
    """Draw images from a prior into one grid (PNG).

    Args:
        model: the tokenizer that decodes (default: the one inside the package)
        output: the file to write, such as samples.png
        number: of images
        classes: draw the images of these classes, one after another
        rows: of tokens (default: as in training)
        columns: of tokens (default: as in training)
        temperature: below 1 draws what is more probable; 0 takes the most probable token
        top_k: draw only from the so many most probable tokens
        top_p: draw only from the most probable tokens that together have this probability
        guidance: exaggerate what the class changes; 1 is without
        steps: passes of the network, for the masked head
        seed: another seed, other images

    Example:
          gsqtok prior sample runs/prior -o samples.png
          gsqtok prior sample runs/prior runs/mine -o samples.png --classes 1 5 7 --guidance 2 --top-k 200
    """
    import torch

    from gsqtok.cli.options import load_model
    from gsqtok.data.display import grid
    from gsqtok.generation.sampling import SamplingOptions
    from gsqtok.generation.sampling import sample as draw
    from gsqtok.io import save_image

    check_output_file(output, suffix=".png")
    network = _load(prior, device)
    tokenizer = load_model(model, device)
    network.vocabulary.require(tokenizer)
    labels = network.labels([classes[i % len(classes)] for i in range(number)]) if classes else None
    trained = network.vocabulary.grid
    tokens = draw(
        network,
        number,
        labels=labels,
        grid=(rows or trained[0], columns or trained[1]),
        options=SamplingOptions(temperature, top_k, top_p, guidance, steps),
        generator=torch.Generator(network.device).manual_seed(seed),
    )
    images = tokenizer.decode(tokens.to(tokenizer.device)).cpu()
    save_image(grid(list(images), round(number**0.5)), Path(output))
    console.print(f"{number} images -> {output}")


def _load(folder: str, device: str | None) -> Prior:
    from gsqtok.generation.prior import Prior

    return Prior.from_pretrained(folder).to(resolve_device(device))


def _predicted(
    model: Prior, dataset: TokenDataset, label: str | None, limit: int | None, batch_size: int
) -> dict[str, Any]:
    """How predictable tokens are, with a bar while they are read."""
    from gsqtok.generation.evaluate import predictability

    with progress("measuring") as bar:
        task = bar.add_task("", total=limit or len(dataset))
        return predictability(
            model,
            dataset,
            label=label,
            batch_size=batch_size,
            limit=limit,
            autocast=model.device.type == "cuda",
            on_progress=lambda done: bar.advance(task, done),
        )


def _real(
    dataset: TokenDataset, tokenizer: Any, images: str | None, split: str | None, size: int, batch_size: int
) -> Any:
    """What samples are compared with, in batches (B, 3, H, W)."""
    if images is None:
        from torch.utils.data import DataLoader

        loader = DataLoader(dataset, batch_size=batch_size)
        return (tokenizer.decode(batch["tokens"].to(tokenizer.device)) for batch in loader)
    from gsqtok.data import ImageTransform, eval_loader, open_source

    source = open_source(images, split=split)
    return (batch["image"] for batch in eval_loader(source, ImageTransform(size, crop="center"), batch_size=batch_size))


def _show(result: dict[str, Any]) -> None:
    numbers = {name: value for name, value in result.items() if isinstance(value, (int, float, str))}
    print_rows([(name, f"{value:.5g}" if isinstance(value, float) else value) for name, value in numbers.items()])
    by_group = zip(result["bits_by_group"], result["entropy_bits_by_group"], strict=True)
    for group, (bits, entropy) in enumerate(by_group):
        console.print(f"group {group}: {bits:.4f} bits a token under the prior, {entropy:.4f} by frequency")
    if result["head"] == "masked":
        messages.print("the masked head has no chain rule: its bits are an upper bound, the mean over random orders")
