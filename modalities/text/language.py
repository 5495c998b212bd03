"""A small autoregressive Transformer on the same data: it says how likely a text is, and its own samples are the baseline."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from guidance import machine
from guidance.bar import each
from guidance.checkpoint import fill, write_atomically
from guidance.condition import Condition, Label
from guidance.errors import UserError
from guidance.judge import fingerprint, in_precision, judging_precision, read
from guidance.modality import SideTraining
from modalities import stubs
from modalities.text.tokenizer import PAD

VERSION = "language-2"
BATCH = 64


class LanguageModel(nn.Module):
    """p(text | attributes), any of which may be absent: one token an attribute, then the text's, then padding as its end.

    Args:
        size: of the vocabulary.
        length: of the longest text.
        classes: number of classes of each attribute.

    ``precision``, "no" or "bf16", is what it runs in.
    """

    precision: str = "no"

    def __init__(self, size: int, length: int, classes: Mapping[str, int], width: int = 192, layers: int = 4, dropout: float = 0.2):
        super().__init__()
        transformers = stubs.transformers()
        self.size, self.length, self.classes = size, length, dict(classes)
        # After the vocabulary: the beginning, then for each attribute "absent" and its classes.
        self.begin = size
        self.first: dict[str, int] = {}
        total = size + 1
        for name, count in self.classes.items():
            self.first[name] = total
            total += 1 + count
        config = transformers.AutoConfig.for_model(
            "gpt2",
            vocab_size=total,
            n_positions=len(self.classes) + 1 + length,
            n_embd=width,
            n_layer=layers,
            n_head=max(1, width // 64),
            **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout),
            **{"bos_token_id": PAD, "eos_token_id": PAD, "pad_token_id": PAD},
        )
        self.model: Any = transformers.AutoModelForCausalLM.from_config(config)

    @property
    def vectors(self) -> Float[Tensor, "size width"]:
        """What it has learned of each token of the vocabulary."""
        table: Tensor = self.model.get_input_embeddings().weight
        return table[: self.size].detach()

    def prefix(self, condition: Condition | None, n: int) -> Int[Tensor, "n attributes_and_1"]:
        columns = []
        for name, first in self.first.items():
            if condition is None or name not in condition.keep:
                columns.append(torch.full((n,), first))
            else:
                columns.append(torch.where(condition.keep[name].cpu(), first + 1 + condition.values[name].cpu(), first))
        return torch.stack([*columns, torch.full((n,), self.begin)], 1)

    def nll(self, ids: Int[Tensor, "n length"], condition: Condition | None = None) -> tuple[Float[Tensor, "n"], Int[Tensor, "n"]]:
        """-log p of each text in nats, its end included where it has one, and the number of tokens that this is of."""
        counted = self.counted(ids)
        places = counted.flatten().nonzero().flatten()
        logits = self.logits(self.prefix(condition, len(ids)), ids, places)
        each = nn.functional.cross_entropy(logits, ids.flatten()[places], reduction="none")
        text = places // ids.shape[1]
        return each.new_zeros(len(ids)).index_add(0, text, each), counted.sum(1)

    @staticmethod
    def counted(ids: Int[Tensor, "n length"]) -> Bool[Tensor, "n length"]:
        """The tokens of each text, up to its end, which is the first padding."""
        end = (ids == PAD).long()
        return end.cumsum(1) - end == 0

    def logits(
        self, prefix: Int[Tensor, "n attributes_and_1"], ids: Int[Tensor, "n length"], places: Int[Tensor, "m"]
    ) -> Float[Tensor, "m size"]:
        """Of the tokens at some places of the flattened texts: reading the whole vocabulary is half of the work, so padding is left out."""
        with machine.autocast(self.precision):
            states = self.model.transformer(torch.cat([prefix, ids], 1)).last_hidden_state[:, prefix.shape[1] - 1 : -1]
            read: Tensor = nn.functional.linear(states.flatten(0, 1)[places], self.model.lm_head.weight[: self.size])
        return read.float()

    @torch.no_grad()
    def sample(self, n: int, condition: Condition | None = None, seed: int = 0) -> Int[Tensor, "n length"]:
        """Ancestral samples, padded."""
        prefix = self.prefix(condition, n)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), machine.autocast(self.precision):
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            made = self.model.generate(
                prefix,
                attention_mask=torch.ones_like(prefix),
                do_sample=True,
                top_k=0,
                max_new_tokens=self.length,
                suppress_tokens=list(range(self.size, self.model.config.vocab_size)),
            )[:, prefix.shape[1] :]
        return nn.functional.pad(made, (0, self.length - made.shape[1]), value=PAD)


def labels_of(data: Any) -> Mapping[str, Label]:
    return {name: spec for name, spec in data.conditions.items() if isinstance(spec, Label)}


def steps_of(data: Any, epochs: int, batch: int) -> int:
    return max(1, epochs * len(data.train) // batch)


def untrained(data: Any, layers: int) -> LanguageModel:
    """The model that `train_language_model` begins with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classes = {name: len(spec.classes) for name, spec in labels_of(data).items()}
        model = LanguageModel(data.vocabulary.size, data.length, classes, layers=layers)
    model.precision = judging_precision()
    return model


def language_training(data: Any, epochs: int = 12, layers: int = 4, batch: int = BATCH) -> SideTraining:
    """What `train_language_model` takes, with as many tokens a text as the data has on average, the longest of a batch as long as any."""
    steps, model = steps_of(data, epochs, batch), untrained(data, layers).train()
    tokens = round(batch * model.counted(data.train.ids).sum(1).float().mean().item())

    def loss() -> Tensor:
        ids = torch.zeros(batch, data.length, dtype=torch.long)
        logits = model.logits(model.prefix(None, batch), ids, torch.arange(tokens))
        return nn.functional.cross_entropy(logits, torch.zeros(tokens, dtype=torch.long))

    return SideTraining(model, steps, loss)


def train_language_model(data: Any, cache: Path, epochs: int = 12, layers: int = 4, batch: int = BATCH, lr: float = 3e-3) -> LanguageModel:
    """The model of a data set, from the cache or trained, in auto's precision: each text with all its attributes, some of them, or (half of
    the time) none."""
    steps, labels, model = steps_of(data, epochs, batch), labels_of(data), untrained(data, layers)
    stamp = in_precision(f"{VERSION}-{layers}-{steps}-{batch}", model.precision)
    name = fingerprint(data, None, stamp)
    weights, facts = cache / f"{name}.safetensors", cache / f"{name}.json"
    if facts.is_file():
        try:
            fill(model, weights)
            return model.eval()
        except UserError:
            pass  # a file cut short: train anew
    raw, _, condition = read(data.train, most=10**9)
    ids = torch.cat(raw)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.1)
    model.train()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        for step in each(range(steps), "language model", "step"):
            rows = torch.randint(len(ids), (batch,), generator=generator)
            u = torch.rand(2, batch, generator=generator)
            of = condition.rows(rows)
            shown = (u[0] > 0.5)[:, None] & (torch.rand(batch, len(labels), generator=generator) > 0.2 * u[1][:, None])
            keep = {name: of.keep[name] & shown[:, k] for k, name in enumerate(labels)}
            used = ids[rows]
            total, counts = model.nll(used[:, : int((used != PAD).sum(1).max()) + 1], Condition({n: of.values[n] for n in keep}, keep))
            optimizer.zero_grad()
            (total.sum() / counts.sum()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = lr * min(1, (step + 1) / 100) * (1 - step / steps)
            optimizer.step()
    from safetensors.torch import save

    cache.mkdir(parents=True, exist_ok=True)
    write_atomically(weights, save({key: tensor.clone() for key, tensor in model.state_dict().items()}))
    write_atomically(facts, json.dumps({"data": data.name, "model": stamp}).encode())
    return model.eval()
