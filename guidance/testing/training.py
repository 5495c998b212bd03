"""Training, saving, loading."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn

from guidance import checkpoint
from guidance.commands import train
from guidance.condition import Dropout
from guidance.config import build
from guidance.guide import CFG
from guidance.model import Model, assemble, load, with_codec
from guidance.sampler import DDIM
from guidance.testing.subject import STEPS, Broken, N, Subject, require
from guidance.train import Objective, Place


def a_run_is_resumed_and_loaded_bit_for_bit(subject: Subject, folder: Path) -> None:
    def trained(name: str, steps: int, resume: bool = False) -> Model:
        config = deepcopy(dict(subject.config))
        config["trainer"] |= {"steps": steps, "batch_size": 4, "accumulate": 1, "decay": "constant", "save_every": 0, "sample_every": 0}
        changed = [f"trainer.steps={steps}"]
        train({**config, "out": str(folder / name), "resume": resume, "overwrite": False}, changed)
        return load(folder / name)

    def weights(model: Model) -> Mapping[str, Tensor]:
        return model.modality.modules().state_dict()

    whole, half = trained("whole", 4), trained("half", 2)
    again = trained("half", 4, resume=True)
    for name, tensor in weights(whole).items():
        require(torch.equal(tensor, weights(again)[name]), f"training that was interrupted gives another {name}")
    require(
        any(not torch.equal(tensor, weights(half)[name]) for name, tensor in weights(whole).items()), "training changes no weight at all"
    )

    def drawn(model: Model) -> Tensor:
        return torch.cat(list(model.latents(N, subject.asked, guidance=CFG(2.0), sampler=DDIM(), steps=STEPS)))

    other = load(folder / "whole")
    require(other.modality.shape == whole.modality.shape, "a loaded model has another shape")
    require(torch.equal(drawn(whole), drawn(other)), "a model that is loaded twice gives different samples")
    saved = checkpoint.read_tensors(checkpoint.latest(folder / "whole") / "average.safetensors")
    own = weights(other)
    require(saved.keys() == own.keys() and all(torch.equal(own[k], v) for k, v in saved.items()), "what is loaded is not what was saved")


def one_batch_is_learnt_by_heart(subject: Subject, folder: Path, steps: int = 400, to: float = 0.3) -> None:
    parts = {key: build(subject.config[key], key) for key in ("loss", "times")}
    modality, denoiser = assemble(subject.config)
    if isinstance(modality.codec, nn.Module) and isinstance(subject.modality.codec, nn.Module):
        modality.codec.load_state_dict(subject.modality.codec.state_dict())
    parts["loss"] = with_codec(parts["loss"], modality)
    objective = Objective(denoiser, modality.codec, **parts, dropout=Dropout(0.0), conditions=modality.conditions)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-3)
    objective.train()
    first = last = float("nan")
    for step in range(steps):
        torch.manual_seed(0)
        loss = objective(subject.raw, subject.condition, Place(0, 0, 0, 0, N)).mean()  # the same noise at every step
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        optimizer.step()
        last = loss.item()
        first = last if step == 0 else first
        require(loss.isfinite().item() is True, f"the loss is {last} at step {step}")
        if last < to * first:
            return
    raise Broken(f"{steps} steps on {N} items bring the loss from {first:.3g} to {last:.3g}: the network does not learn them by heart")


def every_weight_is_trained(subject: Subject, folder: Path) -> None:
    modality = subject.modality
    loss = with_codec(build(subject.config["loss"], "loss"), modality)
    objective = Objective(subject.denoiser, modality.codec, loss, dropout=Dropout(0.5), conditions=modality.conditions)
    objective.zero_grad()
    for step in range(8):  # some drop conditions, some show earlier guesses
        objective(subject.raw, subject.condition, Place(0, step, N * step, 0, N)).mean().backward()
    unused = [name for name, weight in objective.trained.named_parameters() if weight.requires_grad and weight.grad is None]
    objective.zero_grad()
    require(not unused, f"the loss does not depend on {', '.join(unused[:3])}")
