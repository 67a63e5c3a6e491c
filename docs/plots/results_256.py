"""What docs/results.md says of the studies at 256 px; results.py writes it."""

from __future__ import annotations

from typing import Any

from said import FRECHET, Said, length, origin, table

from gsqtok.evaluation.report.metrics import text_of

MIXED = "half full, half mixed"


def setting(said: Said, folder: str) -> str:
    """Where the runs are, and what all of them held."""
    return (
        f"[All runs](studies/{folder}/README.md), {length(said.table)}, one seed, {origin(said.table)}; measured on 1,000 "
        f"photographs of COCO. `{said.table.setting['command']}`"
    )


def scaling() -> str:
    """The paper's table, ours beside theirs."""
    said = Said("scaling", "medium")
    rows = []
    for row in said.table.rows:
        if row.varied.get("discriminator") == "none" and row.metrics:
            rows.append(_scaling_row(said, row.varied, row.metrics))
    head = ["f, G x d, V", "bits/px", "PSNR, dB (paper)", "SSIM (paper)", "FD", "usage / even use (usage, paper)"]
    head += ["perplexity (paper)", *(f"{codec}, dB at bits/px" for codec in said.table.values("codec"))]
    near = said.mean("psnr", f=8, G=16, discriminator="none")
    said.needs(
        "supported", "near lossless: 34.61 dB at f8, D = 64, G = 16",
        "PSNR at f8 orders the numbers of groups as in the paper",
    )  # fmt: skip
    said.needs(
        "not supported", *(f"PSNR at f{f} orders the numbers of groups as in the paper" for f in (16, 32)),
        "usage falls at f16, G = 16, as in the paper", "usage falls at f32, G = 16, as in the paper",
    )  # fmt: skip
    against = []
    for f, g in ((8, 4), (16, 8)):
        with_, without = (
            [said.mean(name, f=f, G=g, discriminator=kind) for name in (FRECHET, "psnr")]
            for kind in ("projected", "none")
        )
        against.append(
            f"f{f}, G = {g}: FD {without[0]:.0f} without, {with_[0]:.0f} with one ({with_[1] - without[1]:+.2f} dB)"
        )
    return f"""### scaling: the paper's table of groups at 256 px
{setting(said, "scaling-medium")}

Networks of 15 to 20M parameters, two runs at a time on a card, so that each had about two minutes of one; the paper trained
50,000 steps of 512 images. FD and the paper's rFID are in different networks.

{table(head, rows)}

- **"Near lossless" at D = 64, G = 16 is within reach**: {near:.1f} dB after 2,000 steps, where the paper has 34.6; the loss is made for PSNR, and the
  images are others.
- **At f8 quality is ordered by groups as in the paper; at f16 and f32 not**: two channels a group (f16 with 8, f32 with 16 groups)
  are worse than four channels in half as many groups, with twice the bits. On the circle a codeword of 18 bits says one number, so
  that 8 groups say 8, and 4 groups of four channels 12.
- **Usage does not fall with d <= 4 as in the paper** (46.8% and 0.5% at f16): the exact search uses as large a part of the codebook
  with 16 groups of one channel as with one of 16. What is missing to 100% is missing at one group, too: the training is short.
- A projected discriminator for the second half of the steps: {"; ".join(against)}.

![PSNR over bits per pixel](studies/scaling-medium/psnr.png)"""


def _scaling_row(said: Said, varied: dict[str, Any], metrics: dict[str, float]) -> list[str]:
    def of(name: str) -> str:
        return text_of(name, metrics[name])

    cells = [
        f"f{varied['f']}, {varied['G']} x {varied['d']}, {varied['V']:,}",
        of("bits_per_pixel"),
        f"{of('psnr')} ({of('paper_psnr')})",
        f"{of('ssim')} ({of('paper_ssim')})",
        f"{metrics[FRECHET]:.0f}",
        f"{metrics['usage'] / metrics['usage_if_even']:.2f} ({of('paper_usage')})",
        f"{metrics['perplexity']:,.0f} ({metrics['paper_perplexity']:,.0f})",
    ]
    for codec in said.table.values("codec"):
        rate = round(metrics["bits_per_pixel"], 4)
        psnr, bits = (said.table.value(name, codec=codec, rate=rate) for name in ("psnr", "bits_per_pixel"))
        cells.append(f"{psnr.mean:.2f} at {bits.mean:.3f}" if psnr else "")
    return cells


def nested() -> str:
    """One tokenizer for four rates: schedules, tokenizers of one rate, bits by position."""
    said = Said("nested", "compact-256")
    counts = range(1, 5)
    rows = []
    for name in said.table.values("trained"):
        if name != "alone" and said.table.value("psnr", trained=name):
            fixed = [f"{said.mean(f'psnr_groups_{k}', trained=name):.2f}" for k in counts]
            gains = [
                f"{_gain(said, name, 'predicted', k):+.2f} ({_gain(said, name, 'chosen', k):+.2f})" for k in (2, 3)
            ]
            rows.append([name, *fixed, *gains])
    rows.append(["a tokenizer for each", *(said.psnr(trained="alone", K=k) for k in counts), "", ""])
    for codec in said.table.values("codec"):
        cells = [said.psnr(codec=codec, rate=rate) for rate in (0.25, 0.5, 0.75, 1.0)]
        rows += [[codec, *cells, "", ""]] if any(cells) else []
    head = ["trained with", *(f"{rate:g} bits/px" for rate in (0.25, 0.5, 0.75, 1.0))]
    head += ["by position at .5", "at .75"]
    beats = "groups by position, chosen from the latent, beat fixed ones by 0.1 dB or more"
    said.needs("supported", f"{MIXED}: {beats}")
    alone = said.mean("psnr", trained="alone", K=2)
    by_position = said.mean("psnr_groups_2", trained=MIXED) + _gain(said, MIXED, "predicted", 2)
    paid = by_position - alone
    ahead = [f"{name} {said.mean('psnr', codec=codec, rate=0.5) - by_position:.1f} dB"
             for codec, name in (("webp", "WebP"), ("avif", "AVIF"))]  # fmt: skip
    lost = {
        k: said.mean("psnr", trained="alone", K=k) - said.mean(f"psnr_groups_{k}", trained=MIXED) for k in (1, 2, 4)
    }
    return f"""### nested: one tokenizer for many rates at 256 px
{setting(said, "nested-compact-256")}

f8, four groups of 65,536 codewords, the networks and the loss of `f8-small`. PSNR, dB, with so many groups everywhere; then what groups
chosen by position from the latent (in brackets: by the true error) gain over as many bits everywhere, the map's bits included:

{table(head, rows)}

- **One tokenizer for four rates costs quality** beside one for each, after these steps: {lost[1]:.1f} dB at one group, {lost[2]:.1f} at two and
  {lost[4]:.1f} at four with `{MIXED}`. The schedule trades few groups for many; what fills the place of a dropped group, and
  whether the decoder is told the number, changes little.
- **Bits by position more than pay for it, if the decoder has seen positions that differ** (`nested_mixed`, the recipe `f8-nested`): at a mean
  of .5 bits/px they are {_gain(said, MIXED, "predicted", 2):.1f} dB better than two groups everywhere, and {paid:.1f} dB better than a tokenizer that was trained for two
  groups alone. Without `nested_mixed` they gain little. Codecs spend their bits better still: there {" and ".join(ahead)} ahead.

![PSNR by position beside fixed groups](studies/nested-compact-256/allocation.png)"""


def _gain(said: Said, name: str, way: str, k: int) -> float:
    return said.mean(f"psnr_{way}_{k}", trained=name) - said.mean(f"psnr_fixed_{k}", trained=name)
