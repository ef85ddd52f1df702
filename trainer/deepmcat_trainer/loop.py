"""The one training loop, top to bottom. What is learnt is the objective's business (objectives/).

    for each epoch: targets → for each batch: loss, step → report → checkpoint

What reference code of deep clustering is known to stumble over is taken care of: empty clusters (sampler.py), the
alignment of features and images (SplitImages has one order), resuming (all randomness is derived from seed and epoch),
features that do not fit in memory (features.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch

from deepmcat_core.errors import ConfigError, InferenceError
from deepmcat_trainer import checkpoint as checkpoints
from deepmcat_trainer import monitor, optimisers
from deepmcat_trainer.body import Body
from deepmcat_trainer.checkpoint import Checkpoint
from deepmcat_trainer.monitor import EpochReport
from deepmcat_trainer.objectives.objective import Epoch, Objective
from deepmcat_trainer.seeds import Use, derive
from deepmcat_trainer.settings import LoopSettings

Ints = npt.NDArray[np.int64]
Schedule = Callable[[float], float]  # the share of the full rates when a share of the run is over


class Training:
    """Trains `body.encoder` in place, towards `objective`. `history`: a report per finished epoch."""

    def __init__(
        self,
        body: Body,
        objective: Objective,
        optimiser: torch.optim.Optimizer,
        settings: LoopSettings,
        schedule: Schedule | None = None,
    ) -> None:
        """optimiser: of the encoder and of the objective's parameters. schedule: of its rates; None: constant.

        Raises ConfigError where a batch is too small for the processes of the run.
        """
        least = 2 * body.run.world.size  # batch norm cannot train on one image
        if settings.batch_size < least:
            raise ConfigError(
                f"setting 'batch_size' is {settings.batch_size}; {body.run.world.size} processes need at least {least}"
            )
        self.body = body
        self.run = body.run
        self.objective = objective.to(body.device)
        self.optimiser = optimiser
        self.settings = settings
        self.schedule = schedule
        self.rates = [float(group["lr"]) for group in optimiser.param_groups]
        self.history: list[EpochReport] = []

    def train(self) -> None:
        """Resume where that is asked for, then epoch by epoch to the end, or as long as the time budget allows.

        Raises ConfigError where the run to resume is another one, InferenceError where the numbers go wrong or the
        device runs out of memory.
        """
        if self.run.resume and checkpoints.exists(self.run.folder):
            self.restore()
        warned: set[str] = set()
        with _own_randomness(self.run.device), _device_errors(self.settings):
            for epoch in range(len(self.history) + 1, self.settings.epochs + 1):
                if self.history and not self.run.world.decide(self._fits(self.history[-1])):
                    self.run.say(f"time budget: stopping after epoch {epoch - 1} of {self.settings.epochs}")
                    break
                report = self.epoch(epoch)
                self.history.append(report)
                self.save()
                self.run.say(report.line(self.settings.epochs))
                for signature, sentence in monitor.warnings(report).items():
                    if signature not in warned:
                        self.run.say(f"warning: {sentence}")
                    warned.add(signature)

    def epoch(self, number: int) -> EpochReport:
        """Targets, then a pass over the images in the order that the objective chose."""
        start = self.run.budget.used
        torch.manual_seed(derive(self.settings.seed, Use.TRAINING, number))
        begun = self.objective.begin_epoch(number)
        if self.run.world.rank > 0:  # what it drew is the same in all processes; what they do to images should not be
            torch.manual_seed(derive(self.settings.seed + self.run.world.rank, Use.TRAINING, number))
        middle = self.run.budget.used
        loss, cross_entropy = self.learn(begun.order, number)
        return self._report(number, begun, loss, cross_entropy, middle - start, self.run.budget.used - middle)

    def learn(self, order: Ints, epoch: int) -> tuple[float, float]:
        """A step for each batch of `order`, of which each process has a part.

        Returns the mean loss, and the mean of the cross-entropy in it.
        """
        world = self.run.world
        stepping = (self.optimiser, *self.objective.optimisers)
        losses, seen = torch.zeros(2, device=self.run.device), 0  # read at the end: reading makes a CPU wait for a GPU
        self.body.encoder.train()
        self.objective.train()
        with self.run.bar(f"epoch {epoch}: training", len(order)) as advance:
            for batch in _batches(order, self.settings.batch_size, least=2 * world.size):
                self._set_rates(epoch - 1 + seen / len(order))
                rows = batch[world.rank :: world.size]
                loss = self.objective.loss(rows)
                share = len(rows) / len(batch)  # of the mean over the batch
                for optimiser in stepping:
                    optimiser.zero_grad()
                (loss.total * share).backward()  # type: ignore[no-untyped-call]
                world.sum_all(_gradients(stepping))
                for optimiser in stepping:
                    optimiser.step()
                losses += torch.stack([part.detach().float() for part in loss]) * len(rows)
                seen += len(batch)
                advance(len(batch))
        self._average_statistics()
        total, cross_entropy = (value / seen for value in world.sum(losses).tolist())
        if not math.isfinite(total):
            raise InferenceError(f"the loss of epoch {epoch} is not a number: try a lower learning rate (lr)")
        return total, cross_entropy

    def save(self) -> None:
        """Put the state in force, by the first process; the others wait, and so fail where it does."""
        if self.run.world.first:
            self.checkpoint().save(self.run.folder)
        self.run.world.barrier()

    def checkpoint(self) -> Checkpoint:
        """The state after the last finished epoch."""
        return Checkpoint(
            key=self.run.key,
            encoder=dict(self.body.encoder.state_dict()),
            objective=dict(self.objective.state_dict()),
            optimiser=optimisers.state_of(self.optimiser, self._parameters()),
            history=tuple(self.history),
        )

    def restore(self) -> None:
        """Take over the state of the checkpoint in force. Raises ConfigError where it is of another run."""
        stored = Checkpoint.load(self.run.folder)
        self.run.key.require_equal(stored.key, self.run.folder)
        self.body.encoder.load_state_dict(stored.encoder)
        self.objective.load_state_dict(stored.objective)
        optimisers.restore(self.optimiser, self._parameters(), stored.optimiser)
        self.history = list(stored.history)
        self.run.say(f"resuming after epoch {stored.epoch} of {self.settings.epochs}")

    def _average_statistics(self) -> None:
        """Batch norm has seen other images in each process; from here on they share the mean of what it remembers."""
        modules = [*self.body.encoder.modules(), *self.objective.modules()]
        norms = {id(module): module for module in modules if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)}
        remembered = [x for norm in norms.values() for x in (norm.running_mean, norm.running_var) if x is not None]
        if self.run.world.size > 1 and remembered:
            self.run.world.sum_all(remembered)
            torch._foreach_div_(remembered, self.run.world.size)

    def _set_rates(self, epochs: float) -> None:
        """The rates after so many epochs, where they change."""
        if self.schedule is not None:
            factor = self.schedule(epochs / self.settings.epochs)
            for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
                group["lr"] = rate * factor

    def _parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return optimisers.trained_parameters({"encoder": self.body.encoder, "objective": self.objective})

    def _report(
        self, number: int, begun: Epoch, loss: float, cross_entropy: float, cluster_s: float, train_s: float
    ) -> EpochReport:
        clusters = begun.clusters
        return EpochReport(
            epoch=number,
            loss=loss,
            cross_entropy=None if begun.chance is None else cross_entropy,
            chance=begun.chance,
            k=clusters.k if clusters else None,
            nmi=monitor.nmi(clusters.labels, clusters.previous) if clusters else None,
            empty=monitor.empty(clusters.labels, clusters.k) if clusters else 0,
            largest_share=monitor.largest_share(clusters.labels) if clusters else 0.0,
            spread=begun.health.spread,
            effective_rank=begun.health.effective_rank,
            cluster_s=cluster_s,
            train_s=train_s,
            images_per_s=len(self.body.images) / max(cluster_s + train_s, 1e-9),
        )

    def _fits(self, last: EpochReport) -> bool:
        """Whether an epoch like the last fits the time budget, and the final stage, which embeds everything again."""
        final_s = max(last.cluster_s, self.body.pass_s)
        return self.run.budget.fits(last.cluster_s + last.train_s + final_s)


def _batches(order: Ints, size: int, least: int) -> Iterator[Ints]:
    """`order` in batches; a last batch below `least` is left out, because batch norm needs two images a process."""
    for start in range(0, len(order), size):
        if len(rows := order[start : start + size]) >= least:
            yield rows


def _gradients(stepping: Iterable[torch.optim.Optimizer]) -> Iterator[torch.Tensor]:
    """Of all that the optimisers step."""
    for optimiser in stepping:
        for group in optimiser.param_groups:
            yield from (p.grad for p in group["params"] if p.grad is not None)


@contextmanager
def _own_randomness(device: str) -> Iterator[None]:
    """Leave torch's global generators as they were: augmentation and dropout draw from them."""
    devices = [torch.device(device).index or 0] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=devices):
        yield


@contextmanager
def _device_errors(settings: LoopSettings) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        smaller = max(2, settings.batch_size // 2)
        raise InferenceError(f"the GPU ran out of memory; try a smaller batch: --set batch_size={smaller}") from error
