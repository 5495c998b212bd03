"""FSDP: weights, gradients, the optimizer's moments and the averaged weights in parts, one a process. Checkpoints are whole.

It is asked for by a config of `accelerate launch` (examples/fsdp.yaml), which says so in the environment. The parts are made by
PyTorch's `fully_shard` (FSDP 2), on CPUs too, where accelerate itself would leave FSDP out.
"""

import os
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from guidance import checkpoint
from guidance.errors import UserError
from guidance.trainer import Trainer


def setting(name: str, default: str = "false") -> str:
    return os.environ.get(name, default).lower()


def wanted() -> bool:
    """Whether this process was launched to train in parts."""
    return setting("ACCELERATE_USE_FSDP") == "true"


def check(trainer: Trainer) -> None:
    """UserError for what is not done in parts."""
    wrap = setting("FSDP_AUTO_WRAP_POLICY", "no_wrap")
    refused = {
        "fsdp_version: 1 (set fsdp_version: 2)": setting("FSDP_VERSION", "1") != "2",
        "fsdp_offload_params: true": setting("FSDP_OFFLOAD_PARAMS") == "true",
        "fsdp_activation_checkpointing: true": setting("FSDP_ACTIVATION_CHECKPOINTING") == "true",
        "fsdp_cpu_ram_efficient_loading: true": setting("FSDP_CPU_RAM_EFFICIENT_LOADING") == "true",
        f"fsdp_auto_wrap_policy: {wrap.upper()} (NO_WRAP or TRANSFORMER_BASED_WRAP)": wrap not in ("no_wrap", "transformer_based_wrap"),
        "trainer.precision=fp16 (use bf16)": trainer.precision == "fp16",
        "trainer.compile=true": trainer.compile,
        "trainer.sample_every (sample a checkpoint instead)": bool(trainer.sample_every),
    }
    for what, is_so in refused.items():
        if is_so:
            raise UserError(f"training in parts (FSDP) does not go with {what}")


def units(network: nn.Module) -> list[nn.Module]:
    """The parts of a network that are gathered one after the other, by the names of their classes; inner ones first."""
    if setting("FSDP_AUTO_WRAP_POLICY", "no_wrap") != "transformer_based_wrap":
        return []
    names = [name.strip() for name in os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP", "").split(",") if name.strip()]
    found = [module for module in network.modules() if module is not network and type(module).__name__ in names]
    if not found:
        known = sorted({type(module).__name__ for module in network.modules() if next(module.children(), None) is not None})
        raise UserError(f"fsdp_transformer_layer_cls_to_wrap={','.join(names)}: the network has no such parts, only {', '.join(known)}")
    return found[::-1]


class Shards:
    """A copy of an objective in parts, with the average of its weights.

    Args:
        objective: that is copied; `give_back` puts the trained weights into it.
        run: to go on from its newest checkpoint, where it has one; None: from the beginning.
    """

    def __init__(self, objective: Any, device: torch.device, run: Path | None):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        self.original, self.objective = objective, deepcopy(objective)
        self.modules: nn.ModuleDict = self.objective.trained
        self.folder = checkpoint.latest(run) if run is not None and checkpoint.saved_steps(run) else None
        average = deepcopy(self.modules)
        if self.folder is not None:
            checkpoint.fill(self.modules, self.folder / "model.safetensors")
            checkpoint.fill(average, self.folder / "average.safetensors")
        self.modules.to(device)
        self.mesh = init_device_mesh(device.type, (int(os.environ["WORLD_SIZE"]),))
        again = setting("FSDP_RESHARD_AFTER_FORWARD", "true") not in ("false", "no_reshard")
        for part in [*units(self.modules["network"]), self.objective]:
            fully_shard(part, mesh=self.mesh, reshard_after_forward=again)
        kept = average.state_dict()
        self.average = {name: self._cut(kept[name].to(device), of) for name, of in self.modules.state_dict().items()}

    def _cut(self, whole: Tensor, like: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor, distribute_tensor

        return distribute_tensor(whole, like.device_mesh, like.placements) if isinstance(like, DTensor) else whole.clone()

    def fill_optimizer(self, optimizer: torch.optim.Optimizer) -> int:
        """The step of the checkpoint that is gone on from, whose moments the optimizer gets; 0 where there is none."""
        if self.folder is None:
            return 0
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in checkpoint.read_tensors(self.folder / "optimizer.safetensors").items():
            index, name = key.split(".", 1)
            if int(index) >= len(parameters):
                raise UserError(f"{self.folder} does not fit its config: it holds the optimizer's state of other parameters")
            like = parameters[int(index)]
            state.setdefault(int(index), {})[name] = self._cut(tensor.to(like.device), like) if tensor.shape == like.shape else tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        return int(checkpoint.read_state(self.folder)["step"])

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """average <- decay * average + (1 - decay) * weights, of the parts that this process holds; as `train.update_average`."""
        now = self.modules.state_dict()
        floating = [name for name in now if now[name].is_floating_point()]
        torch._foreach_lerp_([own(self.average[name]) for name in floating], [own(now[name]) for name in floating], 1 - decay)
        for name in now.keys() - set(floating):
            self.average[name].copy_(now[name])

    def write(self, run: Path, optimizer: torch.optim.Optimizer, facts: Mapping[str, Any], keep: int, main: bool) -> None:
        """Gather all, on all processes; the first writes."""
        state = optimizer.state_dict()["state"]
        moments = {f"{index}.{name}": torch.as_tensor(value) for index, values in state.items() for name, value in values.items()}
        groups = {"model": self.modules.state_dict(), "average": self.average, "optimizer": moments}
        tensors = {group: whole(of, main) for group, of in groups.items()}
        if main:
            checkpoint.save_checkpoint(run, facts["step"], tensors, facts, keep)

    def give_back(self) -> nn.ModuleDict:
        """The averaged weights, whole; the objective gets the trained ones."""
        modules: nn.ModuleDict = self.original.trained
        average = deepcopy(modules).requires_grad_(False).eval()
        average.load_state_dict(whole(self.average))
        modules.load_state_dict(whole(self.modules.state_dict()))
        return average


def own(tensor: Tensor) -> Tensor:
    """What this process holds of it."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensors: Mapping[str, Tensor], kept: bool = True) -> dict[str, Tensor]:
    """Tensors gathered from all processes, one after the other, on the CPU; nothing where they are not ``kept``."""
    from torch.distributed.tensor import DTensor

    found = {}
    for name, tensor in tensors.items():
        gathered = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if kept:
            found[name] = gathered.detach().cpu()
    return found
