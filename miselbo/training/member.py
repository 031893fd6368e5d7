"""The Lightning module: one decoder, a list of encoders, one of which is being trained."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from miselbo.ensemble import Ensemble
from miselbo.errors import InputError, TrainingDivergedError
from miselbo.models.hierarchical import HierarchicalDecoder, HierarchicalEncoder
from miselbo.models.nvae.convs import shared_kernels
from miselbo.protocols import Frozen, latent_noise
from miselbo.training import objective, objectives
from miselbo.training.objectives import Loss, Terms
from miselbo.training.parallel import collectives
from miselbo.training.regularisers import SpectralNormSum, batch_norm_max
from miselbo.training.splitting import SplitsBatches


@dataclass(frozen=True)
class Objective:
    """Hyper-parameters of NVAE's objective and schedule (:mod:`miselbo.training.objective`).

    Args:
        learning_rate: peak of the schedule.
        learning_rate_min: its end.
        warmup_epochs: of the learning rate; at most a fifth of all epochs is used.
        weight_decay: L2 coefficient inside Adamax.
        kl_anneal_portion: share of all steps over which the KL weight rises to 1; 0 turns warm-up and balancing off.
        kl_constant_portion: share of all steps before it starts to rise.
        kl_weight_min: smallest KL weight.
        regulariser: lambda of the spectral and batch-norm regularisers; 0 turns them off.
        regulariser_initial: lambda at KL weight 0, from where it goes to ``regulariser``; None: constant.
        max_skipped_steps: non-finite steps in a row after which training stops.
        num_samples: K, samples of every example in a step.
        loss: of :mod:`miselbo.training.objectives`; None: NVAE's, whose KL weight the three above set.

    Raises:
        InputError: the schedule's end is above its peak, num_samples is no whole number of at least 1, or a loss that
            cannot be called.
    """

    learning_rate: float = 1e-2
    learning_rate_min: float = 1e-4
    warmup_epochs: int = 5
    weight_decay: float = 3e-4
    kl_anneal_portion: float = 0.3
    kl_constant_portion: float = 1e-4
    kl_weight_min: float = 1e-4
    regulariser: float = 1e-2
    regulariser_initial: float | None = None
    max_skipped_steps: int = 20
    num_samples: int = 1
    loss: Loss | None = None

    def __post_init__(self) -> None:
        if self.learning_rate_min > self.learning_rate:
            raise InputError(
                f"model.objective.learning_rate_min={self.learning_rate_min:g} is above "
                f"model.objective.learning_rate={self.learning_rate:g}, from which the rate falls to it"
            )
        count = self.num_samples
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InputError(
                f"model.objective.num_samples must be a whole number of at least 1, got {count!r}"
            )
        if self.loss is not None and not callable(self.loss):
            raise InputError(
                "model.objective.loss must be a function (terms, step, total) -> loss [B], such as those of "
                f"miselbo.training.objectives; got {self.loss!r}"
            )


class MemberTraining(SplitsBatches):
    """Trains the last of ``members`` against ``target``; q_1 trains the target too.

    From q_2 on the target and the other members given are :class:`~miselbo.protocols.Frozen`: no gradients,
    batch norm in evaluation mode even when Lightning calls ``train()``.

    Args:
        target: the decoder.
        members: encoders, of which the last one, q_s, is trained; validation scores all of them.
        objective: hyper-parameters.
        seed: of this member; its noise is a function of (seed, example, step).
        member: s; default the number of encoders given.
    """

    def __init__(
        self,
        target: HierarchicalDecoder,
        members: Sequence[HierarchicalEncoder],
        objective: Objective,
        seed: int,
        member: int | None = None,
    ):
        super().__init__()
        self.member = member or len(members)
        self.seed = seed
        self.settings = objective
        joint = self.member == 1
        self._target: HierarchicalDecoder | Frozen[HierarchicalDecoder] = target if joint else Frozen(target)
        before = [Frozen(member, f"q{s}") for s, member in enumerate(members[:-1], 1)]
        self.earlier = nn.ModuleList(before)
        self._before = before
        self._frozen: list[Frozen[HierarchicalDecoder] | Frozen[HierarchicalEncoder]] = [*before]
        if isinstance(self._target, Frozen):
            self._frozen.insert(0, self._target)
        self.encoder = members[-1]
        self.regularised: list[HierarchicalDecoder | HierarchicalEncoder] = (
            [target, self.encoder] if joint else [self.encoder]
        )
        kernels = [kernel for part in self.regularised for kernel in part.conv_kernels()]
        self.spectral = SpectralNormSum([kernel.detach() for kernel in kernels], seed % 2**63)
        self.norms = self._batch_norms()
        self.alpha = objective_scale(target)
        self.skipped, self._watched = 0, False
        self.examples_seen: int | Tensor = 0
        self._seconds_before, self._started = 0.0, time.perf_counter()
        self._skipped_in_a_row = 0
        self._examples_before: int | Tensor = 0
        self._buffers_before: list[Tensor] = []

    def train(self, mode: bool = True) -> "MemberTraining":
        """The encoder's mode; what is frozen stays in evaluation mode, also where the encoder holds parts of it."""
        super().train(mode)
        for frozen in self._frozen:
            frozen.train(mode)
        return self

    def _watch(self, x: Tensor) -> None:
        """Let the frozen modules answer at two examples and fixed latents, to be asked again every epoch."""
        self._watched = True
        shapes = self.target.latent_shapes
        first, index = x[:2].detach().clone(), torch.arange(2, device=x.device)[: len(x)]
        z = latent_noise(shapes, 0, index, 0, index[:1], x.dtype)

        def answer(module: HierarchicalDecoder | HierarchicalEncoder) -> Tensor:
            like = next(self.encoder.parameters(), x)  # a training in float64 ends in float32
            at, latents = first.to(like.dtype), [part.to(like.dtype) for part in z]
            draw = self.target.at(at, latents)
            return (
                draw.log_p
                if isinstance(module, HierarchicalDecoder)
                else module.log_prob(module.encode(at), draw)
            )

        for frozen in self._frozen:
            frozen.watch(partial(answer, frozen.module))

    @property
    def target(self) -> HierarchicalDecoder:
        """The decoder, frozen or not."""
        return self._target.module if isinstance(self._target, Frozen) else self._target

    @property
    def ensemble(self) -> Ensemble:
        """The members given, this one last, with their target, sharing this module's tensors."""
        return Ensemble(self.target, [*(frozen.module for frozen in self._before), self.encoder])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch, a mean over its examples, in nats."""
        with shared_kernels(*self.regularised):
            return self._loss(self.part(batch))

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        x, index = batch["image"], batch["index"]
        if not self._watched:
            self._watch(x)
        if self._part == 0:
            self._examples_before = self.examples_seen
        whole = collectives.total(len(x), x.device)
        share = collectives.share(len(x), whole)
        terms = self._terms(x, index)
        loss = self._objective(terms, self.global_step, self.total_steps).mean() * share
        self.examples_seen = self.examples_seen + whole * terms.passes
        reconstruction, kl, beta = terms.reconstruction, terms.kl, self.kl_weight()
        self._record(
            {
                "train/elbo": -(reconstruction + kl.sum(-1)).mean() * share,
                "train/reconstruction": reconstruction.mean() * share,
                "train/kl": kl.sum(-1).mean() * share,
                "train/loss": loss,
                "train/kl_weight": beta,
            }
        )
        loss = loss * self.share if self.share < 1 else loss
        if self.settings.regulariser and self._part == 0:
            weights = self.settings.regulariser, self.settings.regulariser_initial
            loss = loss + objective.regulariser_weight(beta, *weights) * self.regulariser()
        return loss

    def _terms(self, x: Tensor, index: Tensor) -> Terms:
        """K new samples of a batch, a function of (seed, example, step)."""
        count = self.settings.num_samples
        samples = torch.arange(count, device=x.device) + count * self.global_step

        def noise(member: int) -> list[Tensor]:
            return latent_noise(self.target.latent_shapes, self.seed, index, member, samples, x.dtype)

        context, earlier = self.encoder.encode(x), [frozen.module for frozen in self._before]
        draw = self.target.draw(x, self.encoder, context, noise(self.member))
        return Terms(x, self.target, self.encoder, context, draw, noise, earlier, self.alpha)

    @property
    def _objective(self) -> Loss:
        settings = self.settings
        return settings.loss or partial(
            objectives.nvae,
            kl_constant_portion=settings.kl_constant_portion,
            kl_anneal_portion=settings.kl_anneal_portion,
            kl_weight_min=settings.kl_weight_min,
        )

    def regulariser(self) -> Tensor:
        """Spectral plus batch-norm regulariser of the modules in training."""
        kernels = [kernel for part in self.regularised for kernel in part.conv_kernels()]
        total = self.spectral(kernels)
        return total + batch_norm_max(self.norms) if self.norms else total

    def kl_weight(self) -> float:
        """Beta at this step; 1 for another loss than NVAE's."""
        settings = self.settings
        return (
            1.0
            if settings.loss
            else objective.kl_weight(
                self.global_step,
                self.total_steps,
                settings.kl_constant_portion,
                settings.kl_anneal_portion,
                settings.kl_weight_min,
            )
        )

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Nothing here: :class:`~miselbo.training.callbacks.EnsembleMonitor` scores the whole ensemble."""

    def _record(self, values: dict[str, float | Tensor]) -> None:
        size = self.share if self.share < 1 else 1
        together = collectives.size() > 1
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=size, sync_dist=together)  # type: ignore[arg-type]

    @property
    def total_steps(self) -> int:
        """Optimiser steps of this member's training."""
        if not hasattr(self, "_total_steps"):
            self._total_steps = max(int(self.trainer.estimated_stepping_batches), 1)
        return self._total_steps

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """As Lightning wants them: :meth:`optimiser`, stepped together."""
        optimizer, schedule = self.optimiser()
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def optimiser(self) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
        """Adamax over the parameters in training, NVAE's learning-rate schedule by step."""
        settings = self.settings
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adamax(
            parameters, lr=1.0, betas=(0.9, 0.999), eps=1e-3, weight_decay=settings.weight_decay, foreach=True
        )
        epochs = self.trainer.max_epochs if self.trainer.max_epochs and self.trainer.max_epochs > 0 else 1
        steps_per_epoch = max(self.total_steps // epochs, 1)
        warmup = min(settings.warmup_epochs, epochs // 5)

        def rate(step: int) -> float:
            return objective.learning_rate(
                step, steps_per_epoch, epochs, warmup, settings.learning_rate, settings.learning_rate_min
            )

        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, rate)

    def on_fit_start(self) -> None:
        """Training mode; remember batch-norm statistics, to undo a non-finite step."""
        self.train()
        self._started = time.perf_counter()
        self.norms = self._batch_norms()
        self.alpha = self.alpha.to(self.device)
        self._buffers_before = [buffer.clone() for buffer in self._statistics()]

    def forget_part(self) -> None:
        """Put batch-norm statistics and counts back to the last step's end."""
        self.examples_seen = self._examples_before
        if self._buffers_before:
            torch._foreach_copy_(self._statistics(), self._buffers_before)

    def _batch_norms(self) -> list[nn.modules.batchnorm._BatchNorm]:
        return [norm for part in self.regularised for norm in part.batch_norms()]

    def _statistics(self) -> list[Tensor]:
        return [norm.get_buffer(name) for norm in self.norms for name in ("running_mean", "running_var")]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Turn a step with a non-finite gradient into no step at all, and stop after too many in a row."""
        gradients = [parameter.grad for group in optimizer.param_groups for parameter in group["params"]]
        present = [gradient for gradient in gradients if gradient is not None]
        finite = bool(torch.stack(torch._foreach_norm(present)).sum().isfinite())
        statistics = self._statistics()
        if finite:
            self._skipped_in_a_row = 0
            if statistics:
                torch._foreach_copy_(self._buffers_before, statistics)
            return
        where = self._first_non_finite()
        optimizer.zero_grad(set_to_none=True)  # an optimiser step without gradients changes nothing
        if statistics:
            torch._foreach_copy_(statistics, self._buffers_before)
        self.skipped += 1
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= self.settings.max_skipped_steps:
            rate = self.settings.learning_rate
            raise TrainingDivergedError(
                f"training q{self.member} stopped: {self._skipped_in_a_row} steps in a row had a non-finite loss or "
                f"gradient, first seen in layer group '{where}' at step {self.global_step}. Nothing finished is lost. "
                f"Try a smaller learning rate: model.objective.learning_rate={rate / 3:.1g} (now {rate:g})."
            )

    def _first_non_finite(self) -> str:
        """Name of the first layer group with a non-finite parameter, else gradient, target first."""
        parts = (("target", self.target), ("encoder", self.encoder))
        named = [(f"{part}.{name}", p) for part, module in parts for name, p in module.named_parameters()]
        for tensors in (
            [(n, p.detach()) for n, p in named],
            [(n, p.grad) for n, p in named if p.grad is not None],
        ):
            for name, tensor in tensors:
                if not bool(tensor.isfinite().all()):
                    return ".".join(name.split(".")[:3])
        return "loss"

    def on_train_epoch_end(self) -> None:
        """Check what is frozen; log the learning rate and the number of skipped steps."""
        for frozen in self._frozen:
            frozen.verify()
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self._record({"train/learning_rate": rate, "train/skipped_steps": float(self.skipped)})

    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        """Keep the counts."""
        checkpoint["parts"] = self.parts
        checkpoint["counts"] = [self.skipped, int(self.examples_seen), self.seconds]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore them."""
        self.skipped, self.examples_seen, self._seconds_before = checkpoint["counts"]
        self.parts = checkpoint.get("parts", 1)

    @property
    def seconds(self) -> float:
        """Seconds of training so far, those before a kill included."""
        return self._seconds_before + time.perf_counter() - self._started


def objective_scale(target: HierarchicalDecoder) -> Tensor:
    """Alpha of the target's groups, [G] float64."""
    return objective.group_scale(target.latent_shapes)
