"""A trained model, ready to sample: what `guidance.load` gives."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from guidance import checkpoint, machine, proper
from guidance.condition import Condition
from guidance.config import build, leaves
from guidance.denoiser import Denoiser
from guidance.errors import UserError, one_of
from guidance.gradient import Steered
from guidance.guide import CFG, Bound, Compose, Guidance, PerModel, PerSample, Term, Weight, nested, rebuilt, weight_rows
from guidance.logic import Either
from guidance.modality import Modality
from guidance.parameterization import Parameterization
from guidance.sampler import Callback, Grid, Sampler, sample
from guidance.schedule import Schedule

PARTS = ("modality", "data", "network", "schedule", "parameterization")
"""What of a config makes a model."""


SAMPLER = {"_target_": "guidance.sampler.DPMSolver", "steps": 25}
"""Where a run's config does not name a sampler."""


def assemble(config: Mapping[str, Any]) -> tuple[Modality, Denoiser]:
    """The untrained model of a config."""
    missing = [key for key in PARTS if not config.get(key)]
    if missing:
        raise UserError(f"the config has no {missing[0]!r}, which a model needs")
    parts = {key: build(config[key], key) for key in ("data", "network", "schedule", "parameterization")}
    modality: Modality = build(config["modality"], "modality", data=parts["data"], network=parts["network"])
    parts["parameterization"] = with_codec(parts["parameterization"], modality)
    for key, is_one in (
        ("modality", isinstance(modality, Modality)),
        ("parameterization", isinstance(parts["parameterization"], Parameterization)),
        ("schedule", schedules(parts["schedule"])),
    ):
        if not is_one:
            raise UserError(f"the config's {key} is none: {config[key]['_target_']} is something else")
    network = modality.network
    again, null = (bool(getattr(network, name, default)) for name, default in (("self_condition", False), ("null_self_condition", True)))
    return modality, Denoiser(network, parts["schedule"], parts["parameterization"], again, null)


def schedules(part: Any) -> bool:
    """Whether this is a `Schedule`, which only calling it can tell."""
    try:
        alpha, sigma = part(torch.tensor(0.5, dtype=torch.float64))
        return isinstance(alpha, Tensor) and isinstance(sigma, Tensor)
    except Exception:  # of whatever it is
        return False


def with_codec(part: Any, modality: Modality) -> Any:
    """A parameterization or loss; one with ``_partial_`` in its config is still to be told the codec."""
    return part(codec=modality.codec) if isinstance(part, functools.partial) else part


def load(
    run: str | Path,
    *,
    step: int | None = None,
    average: bool = True,
    device: torch.device | str = "cpu",
    settings: Mapping[str, Any] | None = None,
    precision: str = "auto",
    revision: str | None = None,
) -> "Model":
    """The model of a run folder, of a folder that `Model.save_pretrained` made, or of the Hugging Face hub.

    Args:
        run: the folder that `polyguide train out=...` made, a saved model's, or where there is no such folder the name of a model on the
            hub, "user/name" or "user/name@revision". A `Path` is always a folder.
        step: of the checkpoint to take; the newest by default.
        average: the moving average of the weights, or the weights themselves.
        settings: of its config, by dotted name, to be changed for this use, such as {"parameterization.temperature": 0.8}.
        precision: of the network when it samples: auto (`guidance.machine`: bf16 where the device does it fast, else "no"), "no" (float32),
            "bf16" or "fp16".
        revision: of a model on the hub: a branch, a tag or a commit.

    Raises: UserError where the run is missing, cut short, or does not fit its config; where the hub does not answer, or has no such model.
    Nothing in a run is executed.
    """
    from guidance import hub

    machine.check_precision(precision)
    source, run = str(run), hub.located(run, revision)
    config = checkpoint.read_config(run)
    if "classifier" in config:
        raise UserError(f"run={source} is a classifier of noisy data, which guides and draws nothing; give the run that it was trained on")
    for name, value in (settings or {}).items():
        replace_setting(config, name, value)
    modality, denoiser = assemble(checkpoint.located(config, run))
    if step is not None and step not in checkpoint.saved_steps(run):
        raise one_of("checkpoint of step", step, [str(s) for s in checkpoint.saved_steps(run)])
    if checkpoint.is_saved(run):
        weights = run / checkpoint.WEIGHTS
        step, averaged = checkpoint.saved_facts(run)
        if averaged and not average:
            raise UserError(f"run={run}: a saved model holds the averaged weights alone; load it with average=True")
        average = averaged
    else:
        folder = checkpoint.latest(run) if step is None else checkpoint.checkpoint_folder(run, step)
        weights, step = folder / ("average.safetensors" if average else "model.safetensors"), int(folder.name.removeprefix("step-"))
    modules = modality.modules()
    checkpoint.fill(modules, weights)
    modules.eval().to(device)
    main = replace(denoiser, precision=machine.dtype_of(machine.precision(precision, device)))
    return Model(modality, {"main": main}, config, run, step, average, source, proper.read(run))


def replace_setting(config: dict[str, Any], name: str, value: Any) -> None:
    """A setting of a model's config, changed in place; UserError where there is none of that name."""
    known = leaves({part: config[part] for part in PARTS if part in config})
    if name not in known or name.endswith("_"):  # not what is called, only with what
        raise one_of("setting of the model", name, [key for key in known if not key.endswith("_")])
    *path, last = name.split(".")
    node = config
    for part in path:
        node = node[part]
    node[last] = value


@dataclass(frozen=True)
class Model:
    """A modality and its denoiser. Further denoisers, by name, serve guidance that refers to other models.

    ``run`` is the folder that it was loaded from, ``step`` the training step of its weights, ``average`` whether they are averaged,
    ``source`` the name that it was loaded by, which for a model of the hub is not that of the folder. ``moments`` are those of its training
    data, by which it warns of guidance that has no density; None: it does not.
    """

    modality: Modality
    denoisers: Mapping[str, Denoiser]
    config: Mapping[str, Any]
    run: Path | None = None
    step: int | None = None
    average: bool = True
    source: str = ""
    moments: proper.Moments | None = None

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next((p.device for p in self.modality.modules().parameters()), torch.device("cpu"))

    @property
    def sampler(self) -> tuple[Sampler, int]:
        """What its samples are drawn with where nothing else is said, and in how many steps."""
        settings = dict(self.config.get("sampler") or SAMPLER)
        steps = settings.pop("steps")
        return build(settings, "sampler"), steps

    def save_pretrained(self, folder: str | Path) -> Path:
        """Save what sampling takes (weights, config, the run's own files) and a model card into a folder that `load` reads anywhere.

        A saved model that is in ``folder`` already is replaced, once the new one is written. Paths of this machine are left out.

        Raises: UserError where the folder holds anything else, or where the model was made without a config.
        """
        from guidance.saved import save

        return save(self, Path(folder))

    def push_to_hub(
        self, repo_id: str, *, private: bool = False, token: str | None = None, message: str = "Upload a polyguide model"
    ) -> str:
        """Upload it, as `save_pretrained` saves it, to the Hugging Face hub in one commit; returns the address.

        Args:
            repo_id: "user/name"; made where there is no such repository.
            private: whether a repository that is made is private.
            token: of the hub; by default the one of `hf auth login`, or of HF_TOKEN.
            message: of the commit.

        Raises: UserError where the hub does not answer, or refuses.
        """
        from guidance import hub

        return hub.push(self, repo_id, private, token, message)

    def attribute(self, name: str, value: Any, n: int) -> Bound:
        """An attribute's values [n, ...] and where they are present, from one value for all or a list of n (None: absent)."""
        if name not in self.modality.conditions:
            raise one_of("attribute", name, list(self.modality.conditions))
        spec = self.modality.conditions[name]
        if isinstance(value, Tensor) and value.ndim < 2:
            value = value.tolist()
        try:
            try:
                items = [spec.parse(value)] * n
            except UserError:
                value = list(value) if isinstance(value, Tensor) else value
                if isinstance(value, str) or not isinstance(value, Sequence):
                    raise
                if len(value) != n:
                    raise UserError(f"one value for all, or a list of n={n}; got {len(value)} values") from None
                items = [spec.absent() if item is None else spec.parse(item) for item in value]
            if len({item.shape for item in items}) > 1:
                raise UserError("values of different sizes cannot be sampled together; sample them one at a time")
        except UserError as error:
            raise UserError(f"condition.{name}: {error}") from None
        listed = isinstance(value, Sequence) and len(value) == n and not isinstance(value, str)
        return Bound(torch.stack(items), torch.tensor([not listed or value[k] is not None for k in range(n)]))

    def condition(self, n: int, values: Mapping[str, Any] | None = None) -> Condition:
        """The condition of n samples: every attribute of the model, absent where ``values`` does not give it."""
        given = {name: self.attribute(name, value, n) for name, value in (values or {}).items() if value is not None}
        absent = torch.zeros(n, dtype=torch.bool)
        made = {name: given.get(name) or Bound(torch.stack([spec.absent()] * n), absent) for name, spec in self.modality.conditions.items()}
        return Condition({name: b.values for name, b in made.items()}, {name: b.keep for name, b in made.items()})

    def latents(
        self,
        n: int,
        condition: Mapping[str, Any] | Condition | None = None,
        *,
        guidance: Guidance | None = None,
        sampler: Sampler | None = None,
        steps: int | None = None,
        grid: Grid | None = None,
        schedule: Schedule | None = None,
        seed: int = 0,
        batch_size: int | None = None,
        max_rows: int | None = None,
        project: bool = True,
        callbacks: Sequence[Callback] = (),
        batches: Iterable[int] | None = None,
    ) -> Iterator[Tensor]:
        """As `sample`, but x0 itself, batch by batch, so that what is done with it need not fit in memory at once.

        ``batches``: the numbers of those to draw, of the ones that `borders` gives; each is asked for when it is to be drawn.
        """
        for what, number in (("n", n), ("batch_size", n if batch_size is None else batch_size)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise UserError(f"{what} is a whole number, at least 1, got {number!r}")
        if sampler is None:
            sampler, own = self.sampler
            steps = own if steps is None else steps
        steps = 50 if steps is None else steps
        given = condition if isinstance(condition, Condition) else self.condition(n, condition)
        if len(given) not in (0, n):
            raise UserError(f"a condition of {len(given)} rows was given for {n} samples")
        guidance = CFG() if guidance is None else guidance
        for what, given_part, kind in (("guidance", guidance, Guidance), ("sampler", sampler, Sampler)):
            if isinstance(given_part, type) or not isinstance(given_part, kind):
                raise UserError(f"{what} is an object such as {'CFG(2.0)' if kind is Guidance else 'DDIM()'}, got {given_part!r}")
        parts = list(nested(guidance))
        composed = any(isinstance(part, Compose | Either) for part in parts) and not any(isinstance(part, Steered) for part in parts)
        if composed and condition and not isinstance(condition, Condition):
            raise UserError(f"a composition names its own conditions: put {', '.join(condition)} into its terms instead")
        guidance = rebuilt(guidance, lambda part: part.of(self, n) if isinstance(part, PerModel) else part)
        everyone = guidance.terms(given)
        if self.moments is not None:
            proper.warn(proper.improper(self.moments, self.modality.conditions, guidance, everyone, n))
        asked = [(t.condition, positive(t.weight, n)) for t in everyone] if composed else [(given, positive(1.0, n))]
        if any(isinstance(part, Either) for part in parts):  # which of them a sample is of is not known before it is drawn
            asked = []
        known = self._known(asked)
        shape_of = self.modality.shape_of
        shape = self.modality.shape if shape_of is None else shape_of(everyone[0].condition)
        rows_of = borders(n, batch_size)
        for k in range(len(rows_of)) if batches is None else batches:
            rows = rows_of[k]
            here = rebuilt(guidance, functools.partial(_some, rows=rows, n=n))
            yield sample(
                self.denoisers,
                (rows.stop - rows.start, *shape),
                given.rows(rows),
                here,
                sampler,
                terms=[_term(term, rows, n) for term in everyone],
                steps=steps,
                grid=grid,
                schedule=schedule,
                seed=seed,
                first=rows.start,
                max_rows=max_rows,
                project=self._projection(project, known, rows),
                callbacks=callbacks,
                device=self.device,
            )

    def _known(self, conditions: Sequence[tuple[Condition, Tensor]]) -> tuple[Tensor, Tensor] | None:
        """Where conditions say what x0 is, the first that does so of each sample; each is asked for by some samples only."""
        if self.modality.known is None:
            return None
        found: tuple[Tensor, Tensor] | None = None
        for condition, asks in conditions:
            mask, x0 = self.modality.known(condition.to(self.device))
            mask = mask & asks.to(mask.device).view(-1, *(1,) * (mask.ndim - 1))
            if found is not None:
                mine = found[0].flatten(1).any(1).view(-1, *(1,) * (x0.ndim - 1))
                mask, x0 = torch.where(mine, found[0], mask), torch.where(mine, found[1], x0)
            found = mask, x0
        return found

    def _projection(self, codec: bool, known: tuple[Tensor, Tensor] | None, rows: slice) -> Callable[[Tensor], Tensor] | None:
        """What is done to every predicted x0 of some samples: the codec's projection, and what is known put in its place."""
        project = self.modality.codec.project if codec else None
        if known is None or not bool(known[0].any()):
            return project
        mask, given = (part[rows] for part in known)
        return lambda x0: torch.where(mask, given.to(x0), x0 if project is None else project(x0))

    def sample(
        self,
        n: int,
        condition: Mapping[str, Any] | Condition | None = None,
        *,
        guidance: Guidance | None = None,
        sampler: Sampler | None = None,
        steps: int | None = None,
        grid: Grid | None = None,
        schedule: Schedule | None = None,
        seed: int = 0,
        batch_size: int | None = None,
        max_rows: int | None = None,
        project: bool = True,
        callbacks: Sequence[Callback] = (),
    ) -> Any:
        """n samples, as the modality's codec decodes them: uint8 [n, channels, h, w]; float [n, samples]; list[str].

        Args:
            condition: an attribute's value is one for all, or a list of n (None: absent); {} or None: unconditional. Or a `Condition`.
            guidance: `CFG(1.0)`, the conditional model, by default; weights may be a list of n.
            sampler, steps, grid, schedule: by default what the run's config says for its samples, `Uniform()` and the model's own; 50 steps
                of a sampler that is given without their number.
            seed: sample i of a seed is the same whatever n and batch_size.
            batch_size: samples drawn at a time; max_rows: rows of one network call (a sample may need several).
            project: whether every predicted x0 is projected by the codec (for pixels, clamped).
            callbacks: called with a `Progress` after every step of every batch.

        Raises: UserError for an attribute, class or weight that does not exist or does not fit.
        """
        parts = self.latents(
            n,
            condition,
            guidance=guidance,
            sampler=sampler,
            steps=steps,
            grid=grid,
            schedule=schedule,
            seed=seed,
            batch_size=batch_size,
            max_rows=max_rows,
            project=project,
            callbacks=callbacks,
        )
        with torch.no_grad():
            return self.modality.codec.decode(torch.cat(list(parts)))


def borders(n: int, batch_size: int | None) -> list[slice]:
    """The batches that n samples are drawn in, of as nearly the same size as can be: where samples of a batch interact, none is small."""
    count = -(-n // min(batch_size or n, n))
    return [slice(-(-k * n // count), -(-(k + 1) * n // count)) for k in range(count)]


def positive(weight: Weight, n: int) -> Bool[Tensor, "n"]:
    """The samples for which a term asks for its condition; a weight that changes counts as one that does."""
    return torch.ones(n, dtype=torch.bool) if callable(weight) else (torch.as_tensor(weight) > 0).expand(n)


def _some(part: Guidance, rows: slice, n: int) -> Guidance:
    """A part of a guidance, for some of n samples."""
    return part.rows(rows, n) if isinstance(part, PerSample) else part


def _term(term: Term, rows: slice, n: int) -> Term:
    """A term that was made for n samples, for some of them."""
    return replace(term, weight=weight_rows(term.weight, rows, n, "guidance weights"), condition=term.condition.rows(rows))
