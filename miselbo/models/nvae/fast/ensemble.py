r"""An ensemble of NVAEs in a form for evaluation alone: the same scores, faster.

Per (member, sample) the decoder runs once, with kernels normalised and batch normalisations folded once and
for all; per group, one convolution gives the decoder-side part of all S members' posteriors
(:mod:`miselbo.models.nvae.fast.heads`), from which the next z is drawn and scored under every member at once, so
no feature is kept. What depends on x alone is computed once per x.

A pass runs N = M x l x b rows: M members, l samples, b examples, members major.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from miselbo.errors import InputError
from miselbo.models.hierarchical import crop_image
from miselbo.models.nvae.decoder import Decoder
from miselbo.models.nvae.encoder import Encoder
from miselbo.models.nvae.fast.folded import FoldedDecoder, FoldedEncoder
from miselbo.models.nvae.fast.folding import FoldedCell
from miselbo.models.nvae.fast.heads import JointHeads, clamped
from miselbo.models.nvae.fast.scoring import Block, Known, Parts, Run, cut
from miselbo.models.nvae.network_input import network_input
from miselbo.protocols import EnsembleForm, latent_noise
from miselbo.runtime.memory import out_of_memory

CPU_BYTES = 128 * 2**20  # of a pass on a CPU: measured, fewer rows leave cores waiting, more gain nothing


def inference_form(
    ensemble: EnsembleForm,
    dtype: torch.dtype | None = None,
    memory: int | None = None,
    compiled: bool = False,
) -> "InferenceEnsemble":
    """The inference form of an NVAE ensemble: a copy, the trained modules stay as they are.

    Args:
        ensemble: of :class:`miselbo.models.nvae.Decoder` and :class:`miselbo.models.nvae.Encoder`.
        dtype: of the decoder's weights and features, default the ensemble's own; densities and latents are
            never in less than float32.
        memory: bytes a pass may use for activations; default fits a CPU's cache, or half of a GPU's free
            memory.
        compiled: pass the decoder's cells through ``torch.compile``, at their first use.

    Raises:
        InputError: another kind of model.

    Example:
        >>> from miselbo.ensemble import Ensemble
        >>> from miselbo.data import ImageSpec
        >>> sizes = dict(num_latent_scales=1, num_groups_per_scale=2, num_latent_per_group=2)
        >>> decoder = Decoder(ImageSpec(1, 8, 8, "bernoulli"), **sizes, num_channels=4)
        >>> ensemble = Ensemble(decoder, [Encoder(decoder, num_channels=4) for _ in range(2)]).double()
        >>> x = torch.zeros(3, 1, 8, 8, dtype=torch.float64)
        >>> log_p, log_q = inference_form(ensemble).score(x, num_samples=5)
        >>> torch.allclose(log_q, ensemble.score(x, num_samples=5, exact_modules=True)[1])
        True
    """
    target, members = ensemble.target, list(ensemble.members)
    if not isinstance(target, Decoder) or not all(isinstance(member, Encoder) for member in members):
        kinds = sorted({type(module).__name__ for module in (target, *members)})
        raise InputError(f"the inference form is made of NVAE decoders and encoders, got {', '.join(kinds)}")
    with torch.no_grad():
        form = InferenceEnsemble(target, members, dtype or next(target.parameters()).dtype, memory)
    if compiled:
        cells = [module for module in form.target.modules() if isinstance(module, FoldedCell)]
        for cell in cells:  # one by one: equal cells share code, and z is drawn between them
            cell.compile(fullgraph=True, dynamic=True, recompile_limit=2 * len(cells))
    return form


class InferenceEnsemble(nn.Module):
    """What :func:`inference_form` makes; ``passes``, ``score`` and ``log_prob`` are those of an ensemble."""

    offsets: Tensor

    def __init__(
        self, target: Decoder, members: Sequence[Encoder], dtype: torch.dtype, memory: int | None
    ) -> None:
        super().__init__()
        wide = next(target.parameters()).dtype
        self.target = FoldedDecoder(target, dtype)
        self.members = nn.ModuleList(FoldedEncoder(member, wide) for member in members)
        self.heads = nn.ModuleList(JointHeads(members, i, dtype) for i in range(1, len(target.latent_shapes)))
        offsets = torch.tensor([member.res_dist for member in members], dtype=wide)
        self.register_buffer("offsets", offsets.view(-1, 1).to(next(target.parameters()).device))
        self.all_offsets, self.any_offsets = bool(offsets.all()), bool(offsets.any())
        self.memory = memory
        self.eval()

    @property
    def rows(self) -> int:
        """(member, sample, example) triples of a pass."""
        memory = self.memory
        if memory is None:
            device = self.target.image_head.weight.device
            memory = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else CPU_BYTES
        return max(1, memory // self.target.row_bytes)

    def passes(
        self,
        x: Tensor,
        num_samples: int,
        samples_per_pass: int | None = None,
        seed: int = 0,
        index: Tensor | None = None,
        first: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Scores as :meth:`miselbo.ensemble.Ensemble.passes` yields them, equal to round-off.

        ``samples_per_pass`` sets how many samples each yield holds (default: as many as a pass runs), not how
        many run at once.
        """
        if num_samples < 1:
            raise InputError(f"num_samples must be at least 1, got {num_samples}")
        index = torch.arange(len(x), device=x.device) if index is None else index
        shapes = self.target.latent_shapes
        with torch.inference_mode():
            known = self.encode(x)
        step = samples_per_pass or max(1, self.rows // max(len(x), 1))
        for start in range(first, num_samples, step):
            samples = torch.arange(start, min(start + step, num_samples), device=x.device)

            def noise(block: Block, samples: Tensor = samples) -> list[Tensor]:
                some, rows = samples[block.samples], index[block.examples]
                parts = [latent_noise(shapes, seed, rows, s, some, known.dtype) for s in block.members]
                return [torch.stack(group) for group in zip(*parts, strict=True)]

            with torch.inference_mode():
                result = self._scores(known, len(samples), noise, given=False)
            yield result

    @torch.inference_mode()
    def score(
        self,
        x: Tensor,
        num_samples: int,
        seed: int = 0,
        index: Tensor | None = None,
        samples_per_pass: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """log_p [B, S, L] and log_q [B, S, L, S] as :meth:`miselbo.ensemble.Ensemble.score`."""
        scores = list(self.passes(x, num_samples, samples_per_pass, seed, index))
        return torch.cat([log_p for log_p, _ in scores], 2), torch.cat([log_q for _, log_q in scores], 2)

    @torch.inference_mode()
    def log_prob(self, x: Tensor, z: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Scores of given z per group [S, L, B, Z, h, w], as :meth:`miselbo.ensemble.Ensemble.log_prob`."""
        lead = tuple(z[0].shape[:3]) if z else ()
        expected = [(len(self.members), *lead[1:2], len(x), *shape) for shape in self.target.latent_shapes]
        if [tuple(latent.shape) for latent in z] != expected:
            raise InputError(f"z must hold latents of shape [S, L, B, Z, h, w] = {expected}")

        def values(block: Block) -> list[Tensor]:
            members = slice(block.members.start, block.members.stop)
            return [latent[members, block.samples, block.examples] for latent in z]

        return self._scores(self.encode(x), lead[1], values, given=True)

    @torch.inference_mode()
    def encode(self, x: Tensor) -> Known:
        """What depends on x alone, computed once per x."""
        parts = [[member(part) for member in self.members] for part in x.split(self.rows)]
        contexts = [
            torch.cat([torch.stack([raw[i] for raw in members], 3) for members in parts])
            for i in range(len(self.target.latent_shapes))
        ]
        contexts[0] = torch.stack(clamped(contexts[0]), 2)
        padded = network_input(x, self.target.image, self.target.network_size)
        return Known(crop_image(padded, self.target.image), contexts)

    def _scores(
        self, known: Known, num_samples: int, latents: Callable[[Block], list[Tensor]], given: bool
    ) -> tuple[Tensor, Tensor]:
        """log_p [B, S, l], log_q [B, S, l, S]; ``latents`` [M, l, b, Z, h, w]: z if ``given``, else noise."""
        size, batch = len(self.members), len(known.x)
        log_p = known.x.new_empty((batch, size, num_samples), dtype=torch.float64)
        log_q = known.x.new_empty((batch, size, num_samples, size), dtype=torch.float64)
        parts = self._parts()
        done = False
        while not done:
            try:
                for block in cut(size, num_samples, batch, self.rows):
                    members = slice(block.members.start, block.members.stop)
                    run = Run(parts, known.part(block.examples), block.members, latents(block), given)
                    p, q = run.scores()
                    log_p[block.examples, members, block.samples] = p.permute(2, 0, 1)
                    log_q[block.examples, members, block.samples] = q.permute(2, 0, 1, 3)
                done = True
            except (RuntimeError, MemoryError) as error:
                self._shrink(error)
        return log_p, log_q

    def _parts(self) -> Parts:
        members = [cast(FoldedEncoder, member) for member in self.members]
        heads = [cast(JointHeads, head) for head in self.heads]
        return Parts(self.target, members, heads, self.offsets, self.all_offsets, self.any_offsets)

    def _shrink(self, error: Exception) -> None:
        """Halve the rows of a pass if memory ran out and there is more than one; else raise the error."""
        rows = self.rows
        if not out_of_memory(error) or rows == 1:
            raise error
        self.memory = self.target.row_bytes * (rows // 2)
        warnings.warn(f"out of memory with {rows} rows per pass: going on with {rows // 2}", stacklevel=4)
