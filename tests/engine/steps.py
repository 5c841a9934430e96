"""Whole training steps on nets and batches of the tests' own."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor, nn

from hardfast.engine.classifier import AttackBN, Classifier
from hardfast.engine.execution import Execution
from hardfast.engine.learner import Learner, Tally
from hardfast.engine.methods import MethodOptions, Setting
from hardfast.engine.optimizers import make_sgd
from hardfast.engine.step import TrainingStep
from hardfast.kernels import random_key
from hardfast.loaders import Batch


def training_step(
    options: MethodOptions,
    net: nn.Module,
    *,
    epsilon: Fraction = Fraction(8, 255),
    box: bool = True,
    attack_bn: AttackBN = "train",
    label_smoothing: float = 0.1,
    seed: int = 0,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    dtype: torch.dtype = torch.float32,
    execution: Execution | None = None,
    image: tuple[int, int, int] = (3, 16, 16),
    batch_size: int = 4,
    samples: int = 16,
) -> TrainingStep:
    """The step of a method on `net`, which is put into train mode and stays where it is.

    `image` (C, H, W), `batch_size` and `samples` matter to methods that store perturbations.
    """
    classifier = Classifier(net.train(), attack_bn=attack_bn, label_smoothing=label_smoothing, execution=execution)
    setting = Setting(
        classifier=classifier,
        epsilon=epsilon,
        box=box,
        seed=seed,
        image=image,
        batch_size=batch_size,
        samples=samples,
        dtype=dtype,
    )
    optimizer = make_sgd(net, classifier.execution, lr=lr, momentum=momentum, weight_decay=weight_decay)
    learner = Learner(classifier, optimizer, Tally(classifier.execution.device))
    return TrainingStep(options.build(setting), learner)


def drawn_batch(size: int = 4, side: int = 16, *, seed: int = 0, device: torch.device | str = "cpu") -> Batch:
    """Random colour images, channels-last, with labels below 10."""
    draw = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (size, side, side, 3), dtype=torch.uint8, generator=draw)
    label = torch.randint(0, 10, (size,), generator=draw)
    return batch_of(image, label, device=device)


def batch_of(image: Tensor, label: Tensor, *, index: Tensor | None = None, device: torch.device | str = "cpu") -> Batch:
    """The batch of these images (uint8 [N, H, W, C]), with the key of seed 0 and epoch 0."""
    index = torch.arange(len(label)) if index is None else index
    return Batch(index.to(device), image.to(device), label.to(device), random_key(0, device=device))
