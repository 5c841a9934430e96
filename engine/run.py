"""One run in memory: its nets, optimisers and loader, where it is, and how all of that is saved and restored."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from ..kernels import to_float
from ..loaders import Batch, Dataset, Loader, Split, check_batch_size, choose_loader, in_memory, make_loader, resized
from .averaging import WeightAverage
from .capture import CapturedStep, rewound
from .checkpoint import MODEL, STATE, Checkpoint, CheckpointStore
from .classifier import Classifier, placed
from .environment import fingerprint, wait_for
from .errors import CaptureError, CheckpointError, UsageError
from .execution import Execution, choose_execution
from .guard import CollapseHistory, NonFiniteHistory, training_seed
from .learner import Learner, Tally
from .methods import Position, Setting
from .models import NetShape, PaddedConv2d, build_model, seeded_initialisation
from .named_tensors import load_optimizer, load_strictly, optimizer_tensors
from .numerics import Numerics
from .optimizers import make_sgd, set_learning_rate, set_momentum
from .pace import Pace
from .recipes.recipe import Recipe, StageOptions
from .recipes.schedule import learning_rate, momentum
from .record import Best, Counters, Record
from .step import Step, TrainingStep
from .threat import parse_pixels

STATISTICS_BATCHES = 100  # that BatchNorm statistics of averaged weights are taken from


@dataclass(frozen=True, slots=True)
class Preparation:
    """Seconds spent before the first step."""

    warmup: float  # the first steps of each kind, with their compilation
    capture: float  # of the CUDA graphs


class Run:
    """Everything that training one recipe changes.

    Args:
        recipe: what to train.
        data: the opened data set.
        device: where everything lies.
        execution: how steps are executed; by default as the recipe says.

    Attributes:
        step: trains on one batch: a `TrainingStep`, or that step as CUDA graphs.
        prepared: what compiling and capturing took; None before `prepare`, and where there is nothing to prepare.
    """

    def __init__(
        self, recipe: Recipe, data: Dataset, device: torch.device, *, execution: Execution | None = None
    ) -> None:
        self.recipe, self.data, self.device = recipe, data, device
        self.shape = NetShape(num_classes=data.num_classes, in_channels=data.image_shape[2])
        if execution is None:
            execution = choose_execution(recipe.execution, device, uncapturable=why_uncapturable(recipe))
        self.execution = execution
        self.at = Counters(epoch=0, step=0, total=0, step_seconds=0.0, wall_seconds=0.0)
        self.stage = recipe.stage_of(0)
        build = partial(build_model, recipe.model, self.shape, image_size=self._image_shape()[1:])
        net = seeded_initialisation(build, recipe.seed)
        self.net = placed(net, execution, channels=self.shape.in_channels, tile=4).train()
        self.classifier = Classifier(
            self.net, attack_bn=recipe.attack_mode, label_smoothing=recipe.label_smoothing, execution=execution
        )
        self.watch = self.classifier.watch
        self.average = None if recipe.weight_average is None else WeightAverage(self.net, recipe.weight_average)
        self.epsilon = parse_pixels(recipe.epsilon, "epsilon")
        for size in [stage.batch_size for stage in recipe.stages] or [recipe.batch_size]:
            check_batch_size(size, len(data.train))
        self._loader: Loader | None = None
        largest = max((stage.image_size for stage in recipe.stages), default=None)
        self.loader_choice = choose_loader(
            data,
            self._image_shape()[1:] if largest is None else (largest, largest),  # one loader for all stages
            options=recipe.loader,
            augmentation=recipe.augmentation,
            device=device,
        )
        self.method = recipe.method.build(
            Setting(
                classifier=self.classifier,
                epsilon=self.epsilon,
                box=recipe.box,
                seed=recipe.seed,
                image=self._image_shape(),
                batch_size=self.batch_size,
                samples=len(data.train),
            )
        )
        self.optimizer = make_sgd(
            self.net,
            execution,
            lr=recipe.optimizer.lr,
            momentum=recipe.optimizer.momentum,
            weight_decay=recipe.optimizer.weight_decay,
            decay_norms=recipe.optimizer.decay_norms,
        )
        self.tally = Tally(device)
        self.step: Step = self._make_step()
        self.prepared: Preparation | None = None
        self.best: Best | None = None
        self.collapse, self.nonfinite = CollapseHistory(), NonFiniteHistory()
        self._until: tuple[Numerics, int] | None = None  # until some step: of a checkpoint, or in another execution
        self.pace = Pace()

    @property
    def seed(self) -> int:
        """Of all that is drawn while training: order, crops, noise."""
        return training_seed(self.recipe.seed, self.collapse.rollbacks)

    @property
    def numerics(self) -> Numerics:
        """What its steps were made with, and the next ones will be."""
        now = fingerprint(self.device, self.execution, loader=self.loader_choice.name)
        if self._until is None:
            return Numerics(now=now)
        before, step = self._until
        return before.followed_by(now, step=step)

    @property
    def batch_size(self) -> int:
        """Images in a batch of the current stage."""
        return self.recipe.batch_size if self.stage is None else self.stage.batch_size

    def enter_stage(self) -> StageOptions | None:
        """Changes image and batch size where the epoch at hand asks for others.

        Returns:
            The stage that has begun; None if nothing changed.
        """
        stage = self.recipe.stage_of(self.at.epoch)
        if stage == self.stage:
            return None
        self.close()
        self.stage = stage
        self.method.resize(self._image_shape(), self.batch_size)
        self.step, self.prepared = self._make_step(), None
        return stage

    @property
    def loader(self) -> Loader:
        """The training batches of the current stage; made when they are first asked for."""
        if self._loader is None:
            self._loader = make_loader(
                self.loader_choice,
                self.data,
                self._image_shape()[1:],
                options=self.recipe.loader,
                augmentation=self.recipe.augmentation,
                batch_size=self.batch_size,
                seed=self.seed,
                device=self.device,
            )
        return self._loader

    def close(self) -> None:
        """Ends the loader's processes and threads; a loader is made again where one is asked for."""
        if self._loader is not None:
            self._loader.close()
            self._loader = None

    @cached_property
    def selecting(self) -> Split:
        """The images that choose the best checkpoint, on the device, at the size that the test images have."""
        split = self.data.heldout if self.recipe.select_on == "heldout" else self.data.test
        size = self.recipe.test_size
        return (in_memory(split) if size is None else resized(split, size)).to(self.device)

    def _image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a training image."""
        height, width, channels = self.data.image_shape
        if self.stage is not None:
            height = width = self.stage.image_size
        return channels, height, width

    def _make_step(self) -> Step:
        learner = Learner(self.classifier, self.optimizer, self.tally, self.average)
        step = TrainingStep(self.method, learner)
        return CapturedStep(step, self.method.kind, self.rewind, self.device) if self.execution.capture else step

    @property
    def unprepared(self) -> bool:
        """Whether there is something to compile or to capture before the next step."""
        return (self.execution.compile or self.execution.capture) and self.prepared is None

    @property
    def evaluated(self) -> nn.Module:
        """The net that is evaluated and kept: the average of the weights where there is one."""
        return self.net if self.average is None else self.average.net

    def renew_statistics(self) -> None:
        """BatchNorm statistics of the averaged weights, from clean training batches of the epoch at hand."""
        if self.average is None:
            return
        batches = self.loader.epoch(self.at.epoch, stop=STATISTICS_BATCHES)
        with self.execution.autocast():
            self.average.recompute_statistics(to_float(batch.x) for batch in batches)

    def prepare(self, positions: Iterable[Position] | None = None) -> str | None:
        """Compiles, and captures as CUDA graphs, every kind of step, on the next batch; trains nothing.

        Args:
            positions: of the steps to come; by default those of an epoch.

        Returns:
            Why the step could not be captured, where that was wanted; it is not then.

        Raises:
            UsageError: a net cannot be compiled.
        """
        if not (self.execution.compile or self.execution.capture):
            return None
        # Takes seconds to import, and an eager step never needs it.
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

        self.net.train()  # a graph keeps the mode that it was captured in
        batch = next(self.loader.epoch(self.at.epoch, stop=1))
        positions = positions or (Position(0, step) for step in range(len(self.loader)))
        kinds = {self.method.kind(position): position for position in positions}
        refused = None
        with self.execution.numerics():
            try:
                self.prepared = self._warmed_up(batch, kinds.values())
            except CaptureError as error:
                refused, until_now = str(error), self.numerics
                self.execution = replace(self.execution, capture=False, why=f"not captured: {refused}")
                if self.at.total:
                    self._until = until_now, self.at.total
                self.step = self._make_step()
                self.prepared = self._warmed_up(batch, kinds.values())
            except (TorchDynamoException, FailOnRecompileLimitHit) as error:
                cause = str(error).strip().splitlines()[0]
                raise UsageError(
                    f"{self.recipe.model.name} cannot be compiled ({cause}): use --execution.mode eager"
                ) from error
        return refused

    def _warmed_up(self, batch: Batch, positions: Iterable[Position]) -> Preparation:
        """Makes a step of each kind, or its graph, and puts everything back."""
        if isinstance(self.step, CapturedStep):
            for position in positions:
                self.step.prepare(batch, position)
            return Preparation(self.step.warmup_seconds, self.step.capture_seconds)
        began = time.perf_counter()
        with self.rewind():
            for position in positions:
                self.step(batch, position)
        wait_for(self.device)
        return Preparation(time.perf_counter() - began, 0.0)

    def slower_paths(self) -> list[str]:
        """A line for every fast path that was asked for and cannot be taken."""
        lines = []
        twin = self.classifier.twin
        if self.recipe.attack_mode == "eval":
            norms = sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.net.modules())
            why = f": {twin.unfolded}" if twin.unfolded else ", the others do not follow one of torch's own directly"
            if len(twin.folded) < norms:
                lines.append(f"attack-bn eval: {len(twin.folded)} of {norms} BatchNorms merged into convolutions{why}")
        if self.execution.compile and self.method.uncompiled is not None:
            lines.append(f"method {self.recipe.method.name} is not compiled as a whole: {self.method.uncompiled}")
        if self.execution.pad_channels and not any(isinstance(m, PaddedConv2d) for m in self.net.modules()):
            lines.append("no convolution reads the image itself: its channels are not padded")
        return lines

    def learning_rate(self, step: int) -> float:
        """Of one step of the current epoch, counted from 0."""
        return learning_rate(self.recipe.schedule, peak=self.recipe.optimizer.lr, **self._place(step))

    def follow_schedule(self) -> None:
        """Learning rate and momentum of the next step."""
        place, recipe = self._place(self.at.step), self.recipe
        set_learning_rate(self.optimizer, self.learning_rate(self.at.step))
        set_momentum(self.optimizer, momentum(recipe.schedule, base=recipe.optimizer.momentum, **place))

    def _place(self, step: int) -> dict[str, int]:
        return {"epoch": self.at.epoch, "step": step, "steps": len(self.loader), "epochs": self.recipe.epochs}

    @contextmanager
    def rewind(self) -> Iterator[None]:
        """Puts back, in place and when it ends, all that training steps inside it changed."""
        scaler = self.classifier.scaler.tensors()
        with rewound(self._all_in_place):
            try:
                yield
            finally:
                self.classifier.scaler.restore(scaler)

    def begin_anew(self) -> None:
        """Puts the run where it began, in place; what its guards have seen stays."""
        host = torch.device("cpu")  # the device has room for one
        fresh = Run(self.recipe, self.data, host, execution=Execution(precision=self.execution.precision))
        self.at, self.best, self._until = fresh.at, None, None
        self.enter_stage()
        theirs = fresh._all_in_place()
        with torch.no_grad():
            for name, value in self._all_in_place().items():
                if name in theirs:
                    value.copy_(theirs[name])
                else:  # what an optimiser has of its own after its first step
                    value.zero_()
        self.classifier.scaler.restore(fresh.classifier.scaler.tensors())

    def _all_in_place(self) -> dict[str, Tensor]:
        """All tensors that a step writes to where they lie, the nets' own and the watch's included."""
        nets = {"net": self.net} | ({} if self.average is None else {"average-net": self.average.net})
        tensors = {
            f"{name}/{key}": value
            for name, net in nets.items()
            for key, value in (*net.named_parameters(), *net.named_buffers())
        }
        watch = {f"watch/{key}": value for key, value in self.watch.tensors().items()}
        return {**self._in_place(), **tensors, **watch}

    def tensors(self) -> dict[str, Tensor]:
        """All tensors but the classifier's and its average's: the method's nets and memory, optimisers, the tally, the
        loss scale."""
        scaler = {f"scaler/{name}": value for name, value in self.classifier.scaler.tensors().items()}
        return {**self._in_place(), **scaler}

    def _in_place(self) -> dict[str, Tensor]:
        """Those of them that a step writes to where they lie."""
        found = {**self._own(), **optimizer_tensors(self.optimizer, self.net, "optimizer")}
        for name, net in self.method.nets().items():
            found.update({f"{name}/{key}": value for key, value in net.state_dict().items()})
        for name, (optimizer, net) in self.method.optimizers().items():
            found.update(optimizer_tensors(optimizer, net, f"{name}-optimizer"))
        return found

    def save(self, store: CheckpointStore, *, best_score: float | None = None) -> None:
        """Writes a checkpoint of this moment, then removes all others but the one before it, the best one and the last
        good one.

        The one before it is what is left of the run if this one is damaged on the disk. It costs room: the newest two
        of FGSM-MEP, whose memory is saved too, have 2.4 GB.

        Args:
            store: the run's checkpoints.
            best_score: held-out accuracy in percent, if this checkpoint is the best so far.
        """
        if best_score is not None:
            self.best = Best(step=self.at.total, epoch=self.at.epoch, score=best_score)
        record = Record(
            at=self.at,
            best=self.best,
            net=self.shape,
            collapse=self.collapse,
            nonfinite=self.nonfinite,
            numerics=self.numerics,
        )
        state = self.tensors()
        if self.average is not None:
            state |= {f"trained/{name}": value for name, value in self.net.state_dict().items()}
        store.save(self.at.total, model=dict(self.evaluated.state_dict()), state=state, record=record)
        good = self.collapse.good if self.recipe.guard == "rollback" else None
        best = None if self.best is None else self.best.step
        before = store.before(self.at.total)
        store.prune(keep={step for step in (self.at.total, before, best, good) if step is not None})

    def restore(self, checkpoint: Checkpoint) -> None:
        """Puts the run where a verified checkpoint left it.

        Raises:
            CheckpointError: a tensor is missing, unknown, or of another shape or dtype.
        """
        self.at = checkpoint.record.at
        self.enter_stage()
        load_strictly(self.evaluated, checkpoint.model(), checkpoint.path / MODEL)
        state, source = checkpoint.state(), checkpoint.path / STATE
        if self.average is not None:
            trained = {name: state.pop(name) for name in list(state) if name.startswith("trained/")}
            load_strictly(self.net, {k.removeprefix("trained/"): v for k, v in trained.items()}, source)
        load_optimizer(self.optimizer, self.net, "optimizer", state, source)
        for name, net in self.method.nets().items():
            own = {key.removeprefix(f"{name}/"): value for key, value in state.items() if key.startswith(f"{name}/")}
            load_strictly(net, own, source)
        for name, (optimizer, net) in self.method.optimizers().items():
            load_optimizer(optimizer, net, f"{name}-optimizer", state, source)
        for name, value in self._own().items():
            if name not in state or state[name].shape != value.shape or state[name].dtype != value.dtype:
                wanted = f"{value.dtype} {tuple(value.shape)}"
                raise CheckpointError(f"{source} has no '{name}' that is {wanted}: it is damaged")
            value.copy_(state[name])
        scaler = {name: state.get(f"scaler/{name}") for name in self.classifier.scaler.tensors()}
        if any(value is None or value.numel() != 1 for value in scaler.values()):
            raise CheckpointError(f"{source} has no loss scale: it is of a run in another precision, or damaged")
        self.classifier.scaler.restore({name: value for name, value in scaler.items() if value is not None})
        unknown = sorted(set(state) - set(self.tensors()))
        if unknown:
            raise CheckpointError(f"{source} has a tensor '{unknown[0]}' that this run has not")
        self.best = checkpoint.record.best
        self.follow(checkpoint.record.collapse)
        self.nonfinite = checkpoint.record.nonfinite
        self._until = checkpoint.record.numerics, checkpoint.record.at.total

    def follow(self, collapse: CollapseHistory) -> None:
        """Takes a history of the guard over, and with its rollbacks the random numbers that it trains with."""
        before, self.collapse = self.seed, collapse
        if self.seed != before:
            self.close()  # the loader draws, too

    def _own(self) -> dict[str, Tensor]:
        """What belongs to no net and no optimiser: the tally, the method's statistics and memory, the average."""
        average = {} if self.average is None else {"steps": self.average.steps}
        return {
            "tally": self.tally.sums,
            **{f"metrics/{name}": value for name, value in self.method.metrics().items()},
            **{f"method/{name}": value for name, value in self.method.state().items()},
            **{f"average/{name}": value for name, value in average.items()},
        }


def why_uncapturable(recipe: Recipe) -> str | None:
    """Why the steps of a recipe cannot be CUDA graphs, if they cannot."""
    if recipe.schedule.cycle_momentum:
        return "schedule.cycle-momentum changes the momentum from step to step, which a graph would freeze"
    return None
