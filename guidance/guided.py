"""Evaluating guidance: K terms -> one network call -> one prediction."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from guidance.condition import Condition
from guidance.denoiser import Context, Denoiser
from guidance.errors import UserError, one_of
from guidance.guide import Guidance, PerRun, Term, evaluate, is_guidance, nested, rebuilt
from guidance.parameterization import Prediction
from guidance.process import Level

Read = Callable[[Denoiser, Tensor, Context, Tensor | None], tuple[Tensor, ...]]
"""(denoiser, x_t, context, x0_hat) -> tensors, a row a sample."""


def onto(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor of the CPU on another device, which is not waited for."""
    return tensor.to(device, non_blocking=True)


def _rows(context: Context, index: Int[Tensor, "r"]) -> Context:
    return tree_map(lambda leaf: leaf[index] if isinstance(leaf, Tensor) else leaf, context)


def _cat(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


@contextmanager
def evaluating(modules: Sequence[object]) -> Iterator[None]:
    """All of them in eval mode, and afterwards as they were."""
    roots = [module for module in modules if isinstance(module, nn.Module)]
    before = [(part, part.training) for root in roots for part in root.modules()]
    for root in roots:
        root.eval()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training


def begun(guidance: Guidance, condition: Condition) -> Guidance:
    """A guidance for one run: every part of it that goes by what is asked for, or remembers, begun anew."""
    return rebuilt(guidance, lambda part: part.begin(condition) if isinstance(part, PerRun) else part)


@dataclass(frozen=True)
class _Embedded:
    """One model's embedded conditions: ``row[k, i]`` is the row of term k and sample i, where that may ever be evaluated."""

    context: Context
    row: Int[Tensor, "k b"]
    rows: int


@dataclass(frozen=True)
class _Call:
    """One network call: which samples (None: all, in order), how many rows, their context, and which are shown the earlier guess
    (None: all)."""

    samples: Int[Tensor, "r"] | None
    rows: int
    context: Context
    guess: Bool[Tensor, "r"] | None


class GuidedDenoiser:
    """K terms -> one network call -> one Prediction.

    Made for one run of ``n`` samples: terms that say the same of a sample are merged, and all conditions are embedded once.
    At each level only rows of non-zero weight (and those of terms that are `always` made) are evaluated, in one call, or in calls of at
    most ``max_rows`` rows. Where a part of the guidance ``differentiates``, so that x_t's gradient is asked for, the network is called
    for that. A call that runs out of a GPU's memory is made again in halves, and ``max_rows`` is what fitted.

    ``terms`` are those of the guidance, where they are made already. ``rows`` counts the network evaluations so far (one row of one call
    each), ``calls`` the calls.
    """

    def __init__(
        self,
        denoisers: Denoiser | Mapping[str, Denoiser],
        guidance: Guidance,
        condition: Condition,
        n: int,
        max_rows: int | None = None,
        device: torch.device | str = "cpu",
        terms: Sequence[Term] | None = None,
    ):
        self.denoisers = denoisers if isinstance(denoisers, Mapping) else {"main": denoisers}
        if max_rows is not None and max_rows < 1:
            raise UserError(f"max_rows is at least 1, got {max_rows}")
        if not is_guidance(guidance):
            raise UserError(f"guidance is an object with terms and combine, such as CFG(2.0), got {guidance!r}")
        self.guidance, self.n, self.max_rows, self.device = begun(guidance, condition), n, max_rows, device
        self.differentiates = any(getattr(part, "differentiates", False) for part in nested(self.guidance))
        self.rows = self.calls = 0
        self.terms = [self._named(term) for term in (self.guidance.terms(condition) if terms is None else terms)]
        for term in self.terms:
            if len(term.condition) not in (0, n):
                raise UserError(f"a condition of {len(term.condition)} rows cannot guide {n} samples")
        # A condition without any attribute says the same as one whose attributes are all absent.
        blank = next((term.condition.drop() for term in self.terms if len(term.condition)), Condition())
        self.terms = [term if len(term.condition) else replace(term, condition=blank) for term in self.terms]
        self._changing = any(callable(part) for term in self.terms for part in (term.weight, term.always))
        self._same = self._equal_terms()
        self._static = None if self._changing else self._weights(0.0)
        with evaluating([denoiser.network for denoiser in self.denoisers.values()]):
            self._embedded = self._embed()
        self._calls: dict[bytes, dict[str, list[_Call]]] = {}

    def _named(self, term: Term) -> Term:
        """The term with its model by name; one that brings its denoiser names it here."""
        if isinstance(term.model, str):
            if term.model not in self.denoisers:
                raise one_of("model for guidance", term.model, list(self.denoisers))
            return term
        name = next((name for name, denoiser in self.denoisers.items() if denoiser is term.model), f"model {len(self.denoisers)}")
        self.denoisers = {**self.denoisers, name: term.model}
        return replace(term, model=name)

    def _equal_terms(self) -> dict[tuple[int, int], Bool[Tensor, "b"]]:
        """For each pair of terms j < k of the same model: the samples of which both say the same."""
        same = {}
        for k, later in enumerate(self.terms):
            for j, earlier in enumerate(self.terms[:k]):
                if earlier.model == later.model:
                    rows = earlier.condition.same(later.condition) if len(later.condition) else torch.ones(self.n, dtype=torch.bool)
                    if bool(rows.any()):
                        same[j, k] = rows
        return same

    def _merge(self, weights: Float[Tensor, "k b"], live: Bool[Tensor, "k b"]) -> tuple[Float[Tensor, "k b"], Bool[Tensor, "k b"]]:
        """Each duplicate's weight moved to the first live term that says the same, and what is live then."""
        weights, live = weights.clone(), live.clone()
        for (j, k), same in self._same.items():
            rows = same & live[j] & live[k]
            weights[j] += torch.where(rows, weights[k], 0.0)
            weights[k] = torch.where(rows, 0.0, weights[k])
            live[k] &= ~rows
        return weights, live

    def _weights(self, logsnr: float) -> tuple[Float[Tensor, "k b"], Bool[Tensor, "k b"]]:
        """Every term's weights at a noise level, and the rows that are evaluated."""
        rows = []
        for term in self.terms:
            found = evaluate(term.weight, logsnr)
            try:
                weight = torch.as_tensor(found, dtype=torch.float64).cpu()
            except (TypeError, ValueError, RuntimeError):
                raise UserError(f"a guidance weight is a number at every noise level, got {found!r} at logsnr {logsnr:.3g}") from None
            if weight.ndim and len(weight) != self.n:
                raise UserError(f"{len(weight)} guidance weights were given for {self.n} samples")
            rows.append(weight.expand(self.n))
        weights = torch.stack(rows)
        excess = (weights.sum(0) - 1).abs() / weights.abs().sum(0).clamp(min=1)
        if not bool((excess < 1e-4).all()):
            total = weights.sum(0)[excess.argmax()]
            raise UserError(f"the weights of {type(self.guidance).__name__} sum to {total:.4g} at logsnr {logsnr:.3g}, not to 1")
        largest, always = weights.abs().max(), self._always(logsnr)
        weights, live = self._merge(weights, (weights != 0) | always)
        # What rounding leaves of zero, as of 1 - (.7 + .2 + .1), is zero: in double, or in single precision.
        weights = torch.where(weights.abs() < 1e-6 * weights.abs().sum(0), 0.0, weights)
        if not bool((weights != 0).any(0).all()):
            raise UserError(f"guidance weights as large as {largest:.3g} cannot be added up to 1")
        return weights, live & ((weights != 0) | always)

    def _always(self, logsnr: float) -> Bool[Tensor, "k 1"]:
        return torch.tensor([term.always(logsnr) if callable(term.always) else term.always for term in self.terms]).view(-1, 1)

    def _of(self, model: str) -> Bool[Tensor, "k 1"]:
        return torch.tensor([term.model == model for term in self.terms]).view(-1, 1)

    def _embed(self) -> dict[str, _Embedded]:
        """Embed every row that can ever be live, once: under changing weights, all but the duplicates, which share a row."""
        everywhere = torch.ones(len(self.terms), self.n, dtype=torch.bool)
        possible = self._merge(everywhere.double(), everywhere)[1] if self._static is None else self._static[1]
        embedded = {}
        for model, denoiser in self.denoisers.items():
            mine = self._of(model) & possible
            used = mine.any(1)
            if not bool(used.any()):
                continue
            together = Condition.cat([term.condition for term, u in zip(self.terms, used, strict=True) if u]).to(self.device)
            kept = mine[used].flatten()
            if len(together) and not bool(kept.all()):
                together = together.rows(onto(kept.nonzero().flatten(), self.device))
            row = (mine.flatten().cumsum(0) - 1).view(mine.shape)
            for (j, k), same in self._same.items():
                row[k] = torch.where(same & ~mine[k], row[j], row[k])
            with denoiser.cast(self.device):
                context = denoiser.network.embed(together)
            embedded[model] = _Embedded(context, row, int(kept.sum()))
        return embedded

    def _plan(self, live: Bool[Tensor, "k b"]) -> dict[str, list[_Call]]:
        """The calls that evaluate the live rows of every model; made once for each set of live rows."""
        key = live.numpy().tobytes()
        if key not in self._calls:
            self._calls[key] = {model: self._split(model, live) for model in self._embedded}
        return self._calls[key]

    def _withholds(self, model: str) -> bool:
        denoiser = self.denoisers[model]
        return denoiser.self_condition and not denoiser.null_self_condition

    def _null(self) -> Bool[Tensor, "k b"]:
        """The rows in which every attribute is absent."""
        absent = [~torch.stack([keep.cpu() for keep in term.condition.keep.values()]).any(0) for term in self.terms if len(term.condition)]
        return torch.stack(absent) if absent else torch.ones(len(self.terms), self.n, dtype=torch.bool)

    def _withheld(self, live: Bool[Tensor, "k b"]) -> Bool[Tensor, "k b"]:
        """The null condition's rows of samples that some other condition guides too."""
        null = self._null()
        return null & (live & ~null).any(0)

    def _split(self, model: str, live: Bool[Tensor, "k b"]) -> list[_Call]:
        embedded, mine = self._embedded[model], self._of(model) & live
        rows, samples = embedded.row[mine], mine.nonzero()[:, 1]
        guess = ~self._withheld(live)[mine] if self._withholds(model) else torch.ones(len(rows), dtype=torch.bool)
        size = self.max_rows or max(len(rows), 1)
        calls = []
        for part, who, shown in zip(*(torch.split(t, size) for t in (rows, samples, guess)), strict=True):
            if not len(part):
                continue
            context = embedded.context
            if len(part) != embedded.rows or bool((part != torch.arange(len(part))).any()):
                context = _rows(context, onto(part, self.device))
            everyone = len(who) == self.n and bool((who == torch.arange(self.n)).all())
            known = None if bool(shown.all()) else onto(shown, self.device)
            calls.append(_Call(None if everyone else onto(who, self.device), len(who), context, known))
        return calls

    @torch.no_grad()
    def __call__(self, x_t: Float[Tensor, "b *d"], level: Level, x0_hat: Float[Tensor, "b *d"] | None = None) -> Prediction:
        """The guided prediction at a level shared by all samples; its ``parts`` are the live terms' own.

        A part's rows of zero weight are zeros: they were not evaluated. The gradient of a guidance that has one is not added yet
        (`steered`).
        """
        with torch.enable_grad() if self.differentiates else nullcontext():
            x_t = x_t.detach().requires_grad_() if self.differentiates else x_t

            def read(denoiser: Denoiser, x: Tensor, context: Context, hint: Tensor | None) -> tuple[Tensor, ...]:
                prediction = denoiser(x, level, context, hint)
                return prediction.x0, prediction.eps

            terms, found = self._evaluated(read, x_t, level, x0_hat)
            parts = [Prediction(x0, eps) for x0, eps in found]
            combined = self.guidance.combine(terms, parts, x_t, level)
        if not isinstance(combined, Prediction) or not combined.x0.shape == combined.eps.shape == x_t.shape:
            of = f"x0 {list(combined.x0.shape)}" if isinstance(combined, Prediction) else type(combined).__name__
            raise UserError(f"combine of the guidance gives {of}, not a Prediction of shape {list(x_t.shape)}")
        combined = replace(combined, parts=tuple(zip(terms, parts, strict=True)))
        return detached(combined) if self.differentiates else combined

    @torch.no_grad()
    def log_density(self, x_t: Float[Tensor, "b *d"], level: Level) -> Float[Tensor, "b"]:
        """The guided density at a level, up to a factor: where the network knows its own (`Density`), and guidance makes one of them.

        Raises: UserError where one of them does not.
        """
        combine = getattr(self.guidance, "log_density", None)
        if combine is None:
            raise UserError(f"{type(self.guidance).__name__} has no density: its prediction is that of no one's score")

        def read(denoiser: Denoiser, x: Tensor, context: Context, hint: Tensor | None) -> tuple[Tensor, ...]:
            return (denoiser.log_density(x, level, context),)

        terms, found = self._evaluated(read, x_t, level, None)
        return cast(Tensor, combine(terms, [log_p for (log_p,) in found], level))

    def _evaluated(
        self,
        read: Read,
        x_t: Tensor,
        level: Level,
        x0_hat: Tensor | None,
    ) -> tuple[list[Term], list[tuple[Tensor, ...]]]:
        """What ``read`` gives for each live term and all samples."""
        weights, live = self._weights(level.logsnr.item()) if self._static is None else self._static
        counts = live.sum(1).tolist()
        parts: dict[int, tuple[Tensor, ...]] = {}
        for model in self._embedded:
            outputs = self._called(read, model, live, x_t, x0_hat)
            mine = [k for k, term in enumerate(self.terms) if term.model == model and counts[k]]
            if mine:
                sizes = [counts[k] for k in mine]
                each = zip(*(torch.split(_cat(list(column)), sizes) for column in zip(*outputs, strict=True)), strict=True)
                parts |= {k: tuple(self._whole(t, live[k]) for t in tensors) for k, tensors in zip(mine, each, strict=True)}
        self._copy(parts, live, level)
        order = sorted(parts)
        return [replace(self.terms[k], weight=self._spread(weights[k], x_t)) for k in order], [parts[k] for k in order]

    def _called(self, read: Read, model: str, live: Bool[Tensor, "k b"], x_t: Tensor, x0_hat: Tensor | None) -> list[tuple[Tensor, ...]]:
        """What ``read`` gives for each call of a model; where a GPU's memory runs out, the calls from then on have half as many rows."""
        denoiser = self.denoisers[model]
        x0_hat = x0_hat if denoiser.self_condition else None
        while True:
            calls = self._plan(live)[model]
            outputs: list[tuple[Tensor, ...]] = []
            try:
                for call in calls:
                    x, hint = (t if t is None or call.samples is None else t[call.samples] for t in (x_t, x0_hat))
                    assert x is not None
                    if hint is not None and call.guess is not None:
                        hint = torch.where(call.guess.view(-1, *(1,) * (hint.ndim - 1)), hint, 0.0)
                    outputs.append(read(denoiser, x, call.context, hint))
            except torch.OutOfMemoryError:
                if (largest := max(call.rows for call in calls)) == 1:
                    raise
                self.max_rows = -(-largest // 2)
            else:
                self.calls, self.rows = self.calls + len(calls), self.rows + sum(call.rows for call in calls)
                return outputs
            outputs.clear()  # outside of the handler, whose traceback holds what the call has made
            self._calls.clear()
            torch.cuda.empty_cache()
            warnings.warn(f"out of memory at {largest} rows a network call; going on with max_rows={self.max_rows}", stacklevel=2)

    def _copy(self, parts: dict[int, tuple[Tensor, ...]], live: Bool[Tensor, "k b"], level: Level) -> None:
        """What terms that are always made say of samples of which an earlier term says the same."""
        if not self._same or not any(term.always for term in self.terms):
            return
        always = self._always(level.logsnr.item())
        for (j, k), same in self._same.items():
            rows = same & live[j] & ~live[k]
            if not bool(always[k]) or not bool(rows.any()):
                continue
            there = onto(rows, parts[j][0].device)

            def chosen(a: Tensor, b: Tensor, there: Tensor = there) -> Tensor:
                return torch.where(there.view(-1, *(1,) * (a.ndim - 1)), a, b)

            before = parts.get(k, tuple(torch.zeros_like(t) for t in parts[j]))
            parts[k] = tuple(chosen(a, b) for a, b in zip(parts[j], before, strict=True))

    def _whole(self, part: Tensor, live: Bool[Tensor, "b"]) -> Tensor:
        if len(part) == self.n:
            return part
        index = onto(live.nonzero().flatten(), part.device)
        return part.new_zeros((self.n, *part.shape[1:])).index_copy(0, index, part)

    def _spread(self, weight: Float[Tensor, "b"], x_t: Float[Tensor, "b *d"]) -> float | Tensor:
        """A number where all samples have the same weight, else [b, 1, ..., 1]."""
        if bool((weight == weight[0]).all()):
            return float(weight[0])
        return onto(weight.to(x_t.dtype), x_t.device).view(-1, *(1,) * (x_t.ndim - 1))


def detached(prediction: Prediction) -> Prediction:
    """Without the way back to x_t."""
    parts = tuple((term, detached(part)) for term, part in prediction.parts)
    own = {name: t.detach() for name in ("x0", "eps", "gradient", "renoise") if (t := getattr(prediction, name)) is not None}
    return replace(prediction, parts=parts, **own)
