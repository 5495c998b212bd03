"""Judges: small classifiers of an attribute, trained on clean real training data, which measure samples.

No downloaded weights are needed, and none of the figures is comparable with those of another judge (an Inception FID, say): the
held-out accuracy of the judge and the figures of real held-out data stand beside every table.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from guidance import machine
from guidance.bar import working
from guidance.cache import cache as own_cache
from guidance.checkpoint import fill, write_atomically
from guidance.condition import Condition, Label
from guidance.errors import UserError
from guidance.modality import Data, SideTraining, Split
from guidance.split import pick

MOST = 10_000  # items of a split that judging looks at
SOON = 2.0  # seconds within which a judge is trained without a bar


def read(split: Split, attribute: str | None = None, most: int = MOST, chunk: int = 512) -> tuple[list[Any], Tensor, Condition]:
    """Raw batches of up to ``most`` items, taken from the split at random, their classes (zeros without an attribute), and conditions;
    items of which the attribute is not known are left out."""
    count = min(len(split), most)
    if not count:
        raise UserError("there is no held-out data to judge by: the data set is too small")
    index = sorted(pick(len(split), count))
    parts = []
    for rows in (index[k : k + chunk] for k in range(0, count, chunk)):
        part = split.__getitems__(rows)
        if attribute and not bool((keep := part[1].keep[attribute]).all()):
            known = [row for row, there in zip(rows, keep.tolist(), strict=True) if there]
            if not known:
                continue
            part = split.__getitems__(known)
        parts.append(part)
    if not parts:
        raise UserError(f"there is no item whose {attribute} is known to judge by")
    condition = Condition.cat([c for _, c in parts])
    return [raw for raw, _ in parts], condition.values[attribute] if attribute else torch.zeros(count, dtype=torch.long), condition


def fingerprint(data: Data, attribute: str | None, version: str) -> str:
    """A name for a judge of an attribute, or of all of them: changes with the data, its attributes, and the judge's own version."""
    raw, label, condition = read(data.train, attribute)
    digest = hashlib.sha256(label.numpy().tobytes())
    if attribute is None:
        for name, values in condition.values.items():
            digest.update(name.encode() + values.numpy().tobytes() + condition.keep[name].numpy().tobytes())
    for part in raw:
        digest.update(part.numpy().tobytes() if isinstance(part, Tensor) else repr(part).encode())
    digest.update(json.dumps([attribute, version, len(data.train), len(data.test), list(data.shape)]).encode())
    return digest.hexdigest()[:16]


def classes(data: Data, attribute: str) -> tuple[str, ...]:
    """What a judge of an attribute tells apart. UserError where the attribute has no classes."""
    spec = data.conditions[attribute]
    if not isinstance(spec, Label):
        raise UserError(f"the attribute {attribute!r} has no classes to judge")
    return spec.classes


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """What ``make`` gives, its first weights a function of the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def judging_precision() -> str:
    """What judges, and other models that measure, are trained and run in: auto's, on the CPU; "no" where that is fp16, which CPUs do not
    train in."""
    found = machine.auto()
    return "no" if found == "fp16" else found


def in_precision(version: str, precision: str) -> str:
    """A version for `fingerprint` of a model that is trained in a precision: fp32 is what a version says by itself."""
    return version if precision == "no" else f"{version}-{precision}"


class TrainedJudge:
    """A judge with its held-out accuracy. ``network`` gives (features, logits) of what ``prepare`` makes of decoded data; ``precision`` is
    the one that it runs in (`guidance.machine`)."""

    def __init__(self, network: nn.Module, prepare: Callable[[Any], Tensor], accuracy: float, precision: str = "no"):
        self.network, self.prepare, self.accuracy, self.precision = network, prepare, accuracy, precision

    @torch.no_grad()
    def __call__(self, decoded: Any) -> tuple[Float[Tensor, "n f"], Float[Tensor, "n classes"]]:
        with machine.autocast(self.precision):
            outputs = [self.network(self.prepare(decoded[k : k + 512])) for k in range(0, len(decoded), 512)]
        return torch.cat([f.float() for f, _ in outputs]), torch.cat([logits.float() for _, logits in outputs])


def train_judge(
    network: nn.Module,
    data: Data,
    attribute: str,
    prepare: Callable[[Any], Tensor],
    augment: Callable[[Tensor, torch.Generator], Tensor],
    *,
    version: str,
    cache: Path | None = None,
    steps: int = 600,
    batch: int = 128,
    lr: float = 2e-3,
) -> TrainedJudge:
    """The judge from the cache, or trained with cross-entropy and cached, in auto's precision (`guidance.machine`). The same data gives the
    same judge in the same precision.

    Args:
        network: (features, logits) of a batch of inputs; `seeded` makes its first weights.
        prepare: decoded data -> the network's inputs; augment: the inputs of a training batch, changed at random.
        version: of the judge, to be changed with its network or its training; it names modality and judge, such as "image-1".
    """
    cache = cache or own_cache() / "judges"
    precision = judging_precision()
    name = fingerprint(data, attribute, in_precision(version, precision))
    weights, facts = cache / f"{name}.safetensors", cache / f"{name}.json"
    if facts.is_file():
        try:
            accuracy = float(json.loads(facts.read_text())["accuracy"])
            fill(network, weights)
            return TrainedJudge(network.eval(), prepare, accuracy, precision)
        except (UserError, ValueError, KeyError):
            pass  # a file cut short, or of another version: train anew
    raw, label, _ = read(data.train, attribute)
    inputs = torch.cat([prepare(part) for part in raw])
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=1e-2)
    network.train()
    with working(f"judge of {attribute}", steps, delay=SOON) as task, torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        for step in range(steps):
            rows = torch.randint(len(label), (batch,), generator=generator)
            with machine.autocast(precision):
                _, logits = network(augment(inputs[rows], generator))
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits.float(), label[rows]).backward()
            for group in optimizer.param_groups:
                group["lr"] = lr * min(1, (step + 1) / 50) * (1 - step / steps)
            optimizer.step()
            task.advance()
    judge = TrainedJudge(network.eval(), prepare, 0.0, precision)
    raw, label, _ = read(data.test, attribute)
    hits = [judge(part)[1].argmax(-1) for part in raw]
    judge.accuracy = (torch.cat(hits) == label).float().mean().item()
    from safetensors.torch import save

    cache.mkdir(parents=True, exist_ok=True)
    write_atomically(weights, save(network.state_dict()))
    write_atomically(facts, json.dumps({"accuracy": judge.accuracy, "attribute": attribute, "data": data.name}).encode())
    return judge


def judge_training(network: nn.Module, inputs: Callable[[int], Tensor], *, steps: int = 600, batch: int = 128) -> SideTraining:
    """What `train_judge` takes with these settings, for `polyguide cost`.

    Args:
        network: as for `train_judge`.
        inputs: n of the network's inputs, zeros of their shape.
    """

    def loss() -> Tensor:
        _, logits = network(inputs(batch))
        return nn.functional.cross_entropy(logits, torch.zeros(batch, dtype=torch.long))

    return SideTraining(network.train(), steps, loss)
