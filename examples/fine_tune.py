"""Fine-tune a tokenizer's decoder on your own images; the frozen encoder keeps every image's tokens as they are.

python examples/fine_tune.py images/ runs/tuned

From the shell: gsqtok train --initialize_from MODEL --freeze encoder --data.train images/ --output runs/tuned
"""

import sys

import gsqtok.tokenizer
from gsqtok import ImageTokenizer
from gsqtok.training import DataConfig, LossConfig, OptimizerConfig, TrainConfig, train


def main(
    images: str, output: str, steps: int = 1000, size: int = 128, batch_size: int = 16, perceptual_weight: float = 1.0
) -> ImageTokenizer:
    """Train on random crops of ``size`` pixels of a source, and return the tuned tokenizer."""
    config = TrainConfig(
        output=output,
        initialize_from=str(gsqtok.tokenizer.EMBEDDED),  # or a folder, a run, an official checkpoint, a hub name
        freeze="encoder",
        data=DataConfig(train=images, size=size, max_resize=2 * size, workers=0),
        loss=LossConfig(perceptual="timm:tf_efficientnet_lite0", perceptual_weight=perceptual_weight),
        optimizer=OptimizerConfig(learning_rate=3e-4, warmup_steps=min(50, steps)),
        steps=steps,
        batch_size=batch_size,
        precision="float32",
        ema_decay=0.99,
    )
    train(config)
    return ImageTokenizer.from_pretrained(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
