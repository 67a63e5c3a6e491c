"""Write docs/claims.md: python docs/plots/claims.py

Every claim of the paper, what its verdict rests on, and the command. Verdicts and numbers come from the results.json
files of docs/studies, through each study's own findings; what no study tests is named as such.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from said import DOCS, FRECHET, length, noise, origin, spreads, table, trained_results

from gsqtok.io import write_bytes
from gsqtok.studies import STUDIES
from gsqtok.studies.study import Finding, Verdict, opposite
from gsqtok.studies.table import Table

NOT_TESTED = "not tested at this scale"
DATA = "--data DATA --validation DATA"


@dataclass(frozen=True)
class Evidence:
    """Findings of a study that bear on a claim.

    Attributes:
        study: its name and its scale, as its folder in docs/studies is called.
        findings: a regular expression that finds their claims.
        contrary: they say the contrary of the claim.
    """

    study: str
    findings: str
    contrary: bool = False


@dataclass(frozen=True)
class Claim:
    """A claim of the paper.

    Attributes:
        text: what is claimed.
        evidence: what bears on it; nothing: it is not tested.
        remark: what its verdict does not say. Holds no number of ours.
        command: what would test it, where no study has.
    """

    text: str
    evidence: tuple[Evidence, ...] = ()
    remark: str = ""
    command: str = ""


PARTS: dict[str, tuple[Claim, ...]] = {
    "Mechanisms, and when they should break": (
        Claim(
            "1. A spherical start with an l2 lookup uses the whole codebook",
            (Evidence("codebook-small", "all codewords are used"),),
            "So short a training, and so few validation images, are little for so many codewords; the paper's 100% is after 100,000 steps.",
        ),
        Claim("1, break: without l2 usage falls", (Evidence("codebook-small", "^without l2: usage"),)),
        Claim("1, break: without l2 quality falls", (Evidence("codebook-small", "^without l2: images"),)),
        Claim(
            "1. Neither trick (plain VQ): usage and quality collapse at one group",
            (Evidence("codebook-small", "^neither trick"),),
        ),
        Claim(
            "1. l1 in the place of l2 loses usage and quality", (Evidence("codebook-small", "^with l1 instead of l2"),)
        ),
        Claim(
            "1. At V = 8,192 a uniform start with l2 is as good as a spherical one",
            (Evidence("codebook-small", r"^with a uniform start: .*V = 8,192", contrary=True),),
            "The paper's table is after 100,000 steps, by when a uniform start may have caught up.",
        ),
        Claim(
            "1. They stabilise training: no step has to be skipped, gradients are even",
            (Evidence("stability-small", "no step has to be skipped|gradients are no more uneven"),),
        ),
        Claim(
            "2. More groups give better images, at the same V", (Evidence("groups-small", "the most groups .* same V$"),)
        ),
        Claim(
            "2. More groups give better images, at the same bits",
            (Evidence("groups-small", "the most groups .* bits$"),),
            "The paper never compares at equal bits.",
        ),
        Claim(
            "2. Decomposition by itself mends what is wrong with plain VQ, at the same bits",
            (Evidence("isolate-small", "decomposition into . groups alone"),),
        ),
        Claim("2, break: at G = 1 quality stalls or falls at high f", (Evidence("groups-small", "at G = 1"),)),
        Claim(
            "3. Both together scale to high compression without loss of quality",
            (Evidence("factor-small", "costs quality beside .* at equal bits", contrary=True),),
            "At equal bits; the paper raises the bits with f.",
        ),
        Claim(
            "3. Groups make up for a part of what down-sampling costs", (Evidence("factor-small", "make up for a part"),)
        ),
        Claim(
            "3, break: at one group and V = 262,144 a uniform start loses usage and quality",
            (Evidence("codebook-small", r"^with a uniform start: .*V = 262,144"),),
        ),
        Claim(
            "3, break: with a uniform start and groups, at f16 and f32, usage falls", (Evidence("start-small", "usage falls"),)
        ),
        Claim(
            "3, break: there, images get worse and the Fréchet distance rises",
            (Evidence("start-small", "images are worse|Fréchet distance rises"),),
        ),
    ),
    "Results": (
        Claim("f16 reaches rFID .50 (8 x 2, V = 262,144; 0.56 bits/px)", remark="It needs ImageNet, Inception and 50,000 steps of 512 images.", command="gsqtok study scaling --scale paper --data IMAGENET"),
        Claim(
            "The table of groups at 256 px: quality is ordered as in the paper",
            (Evidence("scaling-medium", "orders the numbers of groups"),),
        ),
        Claim("Near lossless at D = 64, G = 16 (34.6 dB at 3.25 bits/px)", (Evidence("scaling-medium", "near lossless"),), "On 1,000 other photographs; in the same units and bits."),
        Claim(
            "As the quantizer nears lossless, so do the images (within 0.3 dB of no quantization)",
            (Evidence("limits-small", "as the quantizer nears"),),
        ),
        Claim(
            "Ahead of the state of the art in rFID, PSNR and SSIM",
            remark="No study here trains others' tokenizers at their length; `headtohead` compares quantizers, not tokenizers.",
            command="gsqtok evaluate MODEL IMAGENET --split validation --protocol adm --features inception",
        ),
        Claim(
            "Better with more latent channels, d held", (Evidence("factor-small", "more latent channels"),)
        ),
        Claim(
            "At one group and the same V, more channels are worse", (Evidence("vocabulary-small", "at one group and the same V"),)
        ),
        Claim("Larger codebooks are better", (Evidence("vocabulary-small", "the largest codebook"),)),
        Claim(
            "Usage falls at d <= 4 (62% to 0.5%), as a property of groups",
            (Evidence("precision-small", r"usage fall at d = [124], V = 65,536", contrary=True),),
            "It is a property of a search in bf16: with the exact search usage does not fall.",
        ),
        Claim(
            "Usage falls at f16 and f32 with d <= 4, at 256 px and with the exact search", (Evidence("scaling-medium", "usage falls at"),),
            "Beside the row of the fewest groups, and as a share of what as many tokens drawn evenly would use.",
        ),
        Claim("The exact search gives better images than one in bf16 (ours)", (Evidence("precision-small", "the exact search gives"),)),
    ),
    "The training's choices": (
        Claim("No entropy loss is needed; a weight of .1 or .5 harms", remark="`gsq` has no such term here."),
        Claim("Adaptive group norm and depth-to-space are slightly worse without a discriminator, better with one", command="gsqtok train gan-f8-128 --data.train IMAGENET --model.adaptive_norm true --model.depth_to_space true"),
        Claim("A perceptual term on DINO is better than LPIPS, VGG logits, ResNet", command="gsqtok train vae-f8-128 --data.train IMAGENET --loss.perceptual timm:resnet50"),
        Claim("Adam's betas (.9, .99) are better for PatchGAN", (Evidence("discriminator-small", "better at betas"),)),
        Claim(
            "The projected discriminator brings reconstructions closer in features than none",
            (Evidence("discriminator-small", "a projected discriminator"),),
        ),
        Claim("PatchGAN does, less so", (Evidence("discriminator-small", "a patch discriminator"),)),
        Claim(
            "At 256 px a discriminator brings reconstructions closer in features",
            (Evidence("scaling-medium", "a discriminator brings"),),
        ),
        Claim(
            "A non-saturating generator loss beside a hinge discriminator is better than hinge for both",
            (Evidence("discriminator-small", "a non-saturating generator loss"),),
        ),
        Claim(
            "The official code's GAN recipe is better than ours, in features (ours)",
            (Evidence("official-small", "'ours' .* than 'official'", contrary=True),),
        ),
        Claim("Adaptive weight, gradient penalty and LeCAM do not help", command="gsqtok train gan-f8-128 --data.train IMAGENET --adversarial.adaptive_weight true"),
        Claim("Warm-up and decay of the learning rate do not help", command="gsqtok train vae-f8-128 --data.train IMAGENET --optimizer.schedule cosine --optimizer.warmup_steps 5000"),
        Claim("Attention in the middle of the networks helps beside the projected discriminator", command="gsqtok train gan-f8-128 --data.train IMAGENET --model.middle_attention true"),
        Claim("Larger batches with higher learning rates are better", command="gsqtok train gan-f8-128 --data.train IMAGENET --batch_size 512 --optimizer.learning_rate 2e-4"),
    ),
    "Failure signs": (
        Claim(
            "Usage below 100% goes with worse images (all codewords used beside 0.5% to 22% of them)",
            (Evidence("precision-small", "the exact search gives better images than bf16 at d = [12],"),),
        ),
        Claim(
            "Usage near nothing is collapse, and goes with worse images",
            (Evidence("codebook-small", "^neither trick"),),
        ),
        Claim("rFID stays where it is with more parameters", command="gsqtok train gan-f8-128 --data.train IMAGENET --model.channels 192"),
        Claim("Unsuitable adversarial losses end in NaN", command="gsqtok study discriminator --scale paper --data IMAGENET"),
        Claim(
            "The StyleGAN discriminator ends in NaN",
            (
                Evidence("discriminator-small", "the official code's StyleGAN"),
                Evidence("official-small", "'official-stylegan' training breaks"),
            ),
            "The paper's is the official code's. StyleGAN2's own, the next line, is another network. At 128 px, with all that the official code does otherwise: [its recipe beside ours](paper.md#where-this-differs-from-the-official-code-and-why).",
        ),
        Claim(
            "StyleGAN2's own discriminator ends in NaN (ours)",
            (Evidence("discriminator-small", "StyleGAN2's own"),),
            "One seed, 64 px, a few hundred steps of it: no more than that it did not happen here.",
        ),
    ),
    "Trade-offs of the design": (
        Claim("G against d: at the same bits fewer, larger groups are no worse", (Evidence("groups-small", "the most groups .* bits$", contrary=True),)),
        Claim("One codebook for all groups is as good as one for each", (Evidence("headtohead-compact", "one codebook for all groups"),)),
        Claim(
            "l2 costs computation beside plain VQ (more than half as much again)",
            (Evidence("latency-small", "l2 normalisation costs little", contrary=True),),
        ),
    ),
    "First experiments": (
        Claim("VQ against GSQ on small data: GSQ is better at equal bits", (Evidence("methods-small", "better images than vq"),)),
        Claim("Values of G at fixed D: more groups are better at the same V", (Evidence("groups-small", "the most groups .* same V$"),)),
        Claim(
            "f from 8 to 16 to 32, with G and d adjusted: each doubling costs quality",
            (Evidence("factor-small", "f(16|32) costs quality"),),
        ),
    ),
    "Open questions": (
        Claim(
            "1. Codebooks beyond 512k: quality",
            (Evidence("vocabulary-small", "the largest codebook"), Evidence("stability-small", "images are better")),
            "Claim tested: better than a small codebook.",
        ),
        Claim(
            "1. Codebooks beyond 512k: usage and stability",
            (Evidence("stability-small", "no step|gradients|usage holds"),),
            "Claim tested: no step is skipped, gradients are as even, usage holds.",
        ),
        Claim(
            "2. Limits of reconstruction: a trained codebook is closer to its latents than a random code to uniform ones",
            (Evidence("limits-small", "a trained codebook"),),
            "[Bounds from d, V and the ratio](limits.md) are derived, not claimed by the paper.",
        ),
        Claim("3. GSQ against FSQ at equal bits: GSQ is better", (Evidence("methods-small", "better images than fsq"),)),
        Claim("3. GSQ against RVQ at equal bits: GSQ is better", (Evidence("methods-small", "better images than rvq"),)),
        Claim("3. GSQ against LFQ at equal bits: GSQ is better", (Evidence("methods-small", "better images than lfq"),)),
        Claim(
            "3. GSQ's quantizer is as fast in training as RVQ's, FSQ's and LFQ's",
            (Evidence("methods-small", "a training step"),),
            "Small networks, eager; [quantizers by themselves](performance.md) compares more of them on one card.",
        ),
        Claim(
            "3. GSQ against all others at equal bits: GSQ is the best",
            (Evidence("methods-small", "GSQ gives the best images"), Evidence("headtohead-compact", "a form of GSQ gives the best images")),
            "`headtohead` asks again at length, at f8 and f16 and four rates.",
        ),
        Claim(
            "At 256 px tokens keep more of an image than WebP and AVIF at equal bits (ours)",
            (Evidence("scaling-medium", "tokens keep more"),),
        ),
    ),
    "Next checks": (
        Claim(
            "64-fold down-sampling: costs quality beside f32 at equal bits",
            (Evidence("factor-small", "f64 costs quality"),),
            "At 64 px an f64 grid is one position.",
        ),
        Claim(
            "GSQ's lookup costs little beside plain VQ's, over batch sizes",
            (Evidence("latency-small", "l2 normalisation costs little"),),
        ),
        Claim(
            "Start and decomposition apart: each alone helps over plain VQ",
            (Evidence("isolate-small", "alone help"),),
            "They do not add up ([results](results.md#isolate-start-norm-and-decomposition-apart-and-together)).",
        ),
    ),
    "Limitations that the paper names": (
        Claim(
            "Beyond f32: f64 costs quality beside f32 at equal bits",
            (Evidence("factor-small", "f64 costs quality"),),
            "At 64 px an f64 grid is one position.",
        ),
        Claim("Images larger than 256 px", remark="No study has any.", command="gsqtok train scale-f32-256 --data.train IMAGENET --data.size 512"),
        Claim(
            "Very large codebooks give better images than small ones",
            (Evidence("vocabulary-small", "the largest codebook"), Evidence("stability-small", "images are better")),
        ),
    ),
}  # fmt: skip


@cache
def results(study: str) -> tuple[Table, list[Finding]] | None:
    """A study's published results and what they say; None where it has not been run."""
    found = trained_results(study)
    return None if found is None else (found, STUDIES[found.study].findings(found))


def findings(evidence: Evidence) -> list[Finding]:
    """The findings that bear on a claim, turned round where they say the contrary."""
    known = results(evidence.study)
    if known is None:
        return []
    found = [f for f in known[1] if re.search(evidence.findings, f.claim)]
    if not found:
        raise SystemExit(f"{evidence.study} has no finding '{evidence.findings}'")
    if evidence.contrary:
        return [Finding(f"not: {f.claim}", opposite(f.verdict), f.because) for f in found]
    return found


def verdict(claim: Claim) -> str:
    """Supported where every finding says so, not supported where one refutes it and none supports it, else undecided."""
    verdicts: set[Verdict] = {f.verdict for evidence in claim.evidence for f in findings(evidence)}
    if verdicts <= {"not tested"}:
        return NOT_TESTED
    if verdicts == {"supported"}:
        return "supported"
    return "not supported" if "not supported" in verdicts and "supported" not in verdicts else "undecided"


def seeds(study: str) -> str:
    """How many seeds a setting has."""
    known = results(study)
    if known is None:
        return ""
    counts = {len(known[0].rows_of(**setting)) for setting in known[0].settings() if "codec" not in setting}
    return " or ".join(map(str, sorted(counts))) + (" seed" if counts == {1} else " seeds")


def block(claim: Claim) -> str:
    """A claim with its verdict, and what that rests on."""
    lines = [f"### {claim.text}", f"**{verdict(claim)}**"]
    for evidence in claim.evidence:
        name, _, scale = evidence.study.rpartition("-")
        known = results(evidence.study)
        if known is None:
            lines.append(f"Not run yet: `gsqtok study {name} --scale {scale} {DATA}`.")
            continue
        rows = [(f.claim, f.verdict, "" if f.verdict == "not tested" else f.because) for f in findings(evidence)]
        lines.append(
            table(["finding", "verdict", "results"], [[cell.replace("|", "\\|") for cell in row] for row in rows])
        )
        lines.append(
            f"[{name}](studies/{evidence.study}/README.md), {seeds(evidence.study)}, {length(known[0])}, "
            f"{origin(known[0])}: `{known[0].setting['command']}`"
        )
    if claim.remark:
        lines.append(claim.remark)
    if claim.command:
        lines.append(f"What would test it: `{claim.command}`")
    return "\n\n".join(lines)


def page() -> str:
    """The whole page."""
    claims = [claim for part in PARTS.values() for claim in part]
    counts = {
        said: sum(verdict(c) == said for c in claims)
        for said in ("supported", "not supported", "undecided", NOT_TESTED)
    }
    summary = []
    for title, part in PARTS.items():
        summary += [["" if i else title, claim.text, verdict(claim)] for i, claim in enumerate(part)]
    settings = len(spreads("psnr", False))
    rule = f"""What the paper (arXiv 2412.02632) claims, when it says its method breaks, the signs of failure that it names, its first
experiments, what it leaves open: each with a verdict, the results that it rests on, the command and the seeds.
Of {len(claims)} claims, {", ".join(f"{count} are {said}" for said, count in counts.items())}.

- **supported**: every finding says so. **not supported**: a finding refutes it and none supports it.
- **undecided**: findings contradict each other, or a gap is no larger than seeds make. Over the {settings} settings of `precision` and `methods`
  with three seeds, two runs that differ in their seed alone are up to {noise("psnr", False):.2f} dB, {noise("usage", True):.0%} of the usage and {noise(FRECHET, True):.0%} of the Fréchet distance apart
  (twice the standard deviation of a difference). One seed decides nothing below 0.3 dB, 25% and 15%.
- **{NOT_TESTED}**: no study has run it, or its runs are missing.

**What no verdict here can say.** The small scale is 64 px, a model of about 4M parameters and 500 steps, 2.7 epochs of Tiny ImageNet; the paper's is 256
px, ImageNet and 50,000 steps of 512 images. A verdict is of the claim at the scale that its line names. Where that line says one
seed, a larger gap than the above is still one draw. Nothing has been run at the paper's scale.

This page is written by `python docs/plots/claims.py` from the `results.json` of each study."""
    parts = ["# The paper's claims", rule, table(["", "claim", "verdict"], summary)]
    for title, part in PARTS.items():
        parts += [f"## {title}", *map(block, part)]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    write_bytes(DOCS / "claims.md", page().encode())
