"""gsqtok train."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import gsqtok.training.config


def train(
    recipe: str | None, config: gsqtok.training.config.TrainConfig, *, resume: bool = False, changed_data: bool = False
) -> None:
    """Train a tokenizer on images.

    The recipe is a YAML file or the name of one that comes with the package (gsqtok recipes ls); --a.b VALUE overrides
    its values. The run's folder holds its resolved configuration, checkpoints, curves (tensorboard --logdir runs/mine),
    sample grids, metrics.jsonl, and the tokenizer: ImageTokenizer.from_pretrained("runs/mine").

    On SIGTERM, SIGUSR1 or Ctrl-C the run saves a checkpoint and ends with status 75; a second signal ends it at once.

    Args:
        resume: go on from the newest checkpoint in the output folder
        changed_data: with --resume, go on although images were added, removed or changed since the run was started

    Example:
          gsqtok train small --data.train images/ --output runs/mine
          gsqtok train small --data.train images/ --output runs/mine --resume
          gsqtok train my-recipe.yaml --model.quantizer.groups 4 --steps 20000
          torchrun --nproc-per-node 8 -m gsqtok train my-recipe.yaml
    """
    from gsqtok import training

    training.train(config, resume=resume, changed_data=changed_data)
