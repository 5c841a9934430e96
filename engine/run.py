"""One run in memory: its nets, optimisers and loader, where it is, and how all of that is saved and restored."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ..loaders import Dataset, Loader, ResidentLoader
from .checkpoint import MODEL, STATE, Checkpoint, CheckpointStore, load_optimizer, load_strictly, optimizer_tensors
from .errors import CheckpointError
from .methods import Setting
from .models import NetShape, build_model, channels_last, seeded_initialisation
from .recipes import Recipe
from .record import Best, Counters, Record
from .threat import parse_pixels


class Tally:
    """Loss and accuracy of the current epoch, summed on the device so that no step waits for it."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, right answers, images

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Counts one batch: its mean loss [] and its logits [N, K] on the adversarial images."""
        right = (logits.argmax(dim=1) == labels).sum()
        self.sums += torch.stack([loss * len(labels), right, torch.full_like(right, len(labels))]).to(self.sums)

    def read(self) -> tuple[float, float]:
        """(mean loss, accuracy in percent); waits for the device."""
        loss, right, images = self.sums.tolist()
        return loss / max(images, 1), 100 * right / max(images, 1)

    def clear(self) -> None:
        """Begins a new epoch."""
        self.sums.zero_()


class Run:
    """Everything that training one recipe changes.

    Args:
        recipe: what to train.
        data: the opened data set.
        device: where everything lies.
    """

    def __init__(self, recipe: Recipe, data: Dataset, device: torch.device) -> None:
        self.recipe, self.data, self.device = recipe, data, device
        self.shape = NetShape(num_classes=data.num_classes, in_channels=data.image_shape[2])
        net = seeded_initialisation(partial(build_model, recipe.model, self.shape), recipe.seed)
        self.net = channels_last(net.to(device))
        self.epsilon = parse_pixels(recipe.epsilon, "epsilon")
        self.method = recipe.method.build(
            Setting(
                net=self.net,
                epsilon=self.epsilon,
                box=recipe.box,
                attack_bn=recipe.attack_bn,
                label_smoothing=recipe.label_smoothing,
                seed=recipe.seed,
                channels=self.shape.in_channels,
                device=device,
            )
        )
        self.optimizer = torch.optim.SGD(
            self.net.parameters(),
            lr=recipe.optimizer.lr,
            momentum=recipe.optimizer.momentum,
            weight_decay=recipe.optimizer.weight_decay,
        )
        self.loader: Loader = ResidentLoader(
            data.train,
            batch_size=recipe.batch_size,
            padding=recipe.crop_padding,
            flip=recipe.flip,
            seed=recipe.seed,
            device=device,
        )
        self.at = Counters(epoch=0, step=0, total=0, step_seconds=0.0, wall_seconds=0.0)
        self.tally = Tally(device)
        self.best: Best | None = None
        self.images_per_second = 0.0  # of the newest epoch, without evaluation and saving

    def tensors(self) -> dict[str, Tensor]:
        """All tensors but the classifier's: the method's nets and statistics, every optimiser, the tally."""
        found = {"tally": self.tally.sums, **optimizer_tensors(self.optimizer, self.net, "optimizer")}
        found.update(self._metrics())
        for name, net in self.method.nets().items():
            found.update({f"{name}/{key}": value for key, value in net.state_dict().items()})
        for name, (optimizer, net) in self.method.optimizers().items():
            found.update(optimizer_tensors(optimizer, net, f"{name}-optimizer"))
        return found

    def save(self, store: CheckpointStore, *, best_score: float | None = None) -> None:
        """Writes a checkpoint of this moment, then removes all others but the best one.

        Args:
            store: the run's checkpoints.
            best_score: held-out accuracy in percent, if this checkpoint is the best so far.
        """
        if best_score is not None:
            self.best = Best(step=self.at.total, epoch=self.at.epoch, score=best_score)
        record = Record(at=self.at, best=self.best, net=self.shape)
        store.save(self.at.total, model=dict(self.net.state_dict()), state=self.tensors(), record=record)
        store.prune(keep={self.at.total} | ({self.best.step} if self.best else set()))

    def restore(self, checkpoint: Checkpoint) -> None:
        """Puts the run where a verified checkpoint left it.

        Raises:
            CheckpointError: a tensor is missing, unknown, or of another shape or dtype.
        """
        load_strictly(self.net, checkpoint.model(), checkpoint.path / MODEL)
        state, source = checkpoint.state(), checkpoint.path / STATE
        load_optimizer(self.optimizer, self.net, "optimizer", state, source)
        for name, net in self.method.nets().items():
            own = {key.removeprefix(f"{name}/"): value for key, value in state.items() if key.startswith(f"{name}/")}
            load_strictly(net, own, source)
        for name, (optimizer, net) in self.method.optimizers().items():
            load_optimizer(optimizer, net, f"{name}-optimizer", state, source)
        for name, value in {"tally": self.tally.sums, **self._metrics()}.items():
            if name not in state or state[name].shape != value.shape:
                raise CheckpointError(f"{source} has no '{name}' of shape {tuple(value.shape)}: it is damaged")
            value.copy_(state[name])
        unknown = sorted(set(state) - set(self.tensors()))
        if unknown:
            raise CheckpointError(f"{source} has a tensor '{unknown[0]}' that this run has not")
        self.at, self.best = checkpoint.record.at, checkpoint.record.best

    def _metrics(self) -> dict[str, Tensor]:
        return {f"metrics/{name}": value for name, value in self.method.metrics().items()}
