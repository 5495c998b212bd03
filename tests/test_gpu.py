"""What only a GPU can show; without one, nothing here runs."""

from typing import Any

import pytest
import torch
from torch import Tensor

from guidance import CFG, DDIM, DDPM, Condition, DPMSolver, Heun, Interval, Label, sample
from guidance.denoiser import Denoiser
from guidance.parameterization import V
from guidance.sampler import Progress
from guidance.schedule import Cosine
from modalities.image.network import UNet

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

N = 6
CONDITION = Condition.of(digit=torch.arange(N) % 3)
SCALES = torch.tensor([0.0, 1.0, 2.5, -1.5, 0.5, 1.0])
GUIDANCES = {"number": CFG(3.0), "each": CFG(SCALES), "interval": Interval(CFG(SCALES), -3.0, 3.0)}


@pytest.fixture
def denoiser() -> Denoiser:
    torch.manual_seed(0)
    network = UNet((1, 8, 8), {"digit": Label(["a", "b", "c"])}, channels=16, multipliers=(1, 2), blocks=1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return Denoiser(network, Cosine(), V())


@pytest.mark.parametrize("sampler", [DDIM(), DDPM(), Heun(), DPMSolver()], ids=repr)
@pytest.mark.parametrize("name", GUIDANCES)
def test_no_step_waits_for_the_gpu(denoiser: Denoiser, name: str, sampler: Any):
    """PyTorch refuses whatever waits, from the second step on: by then it is known which rows are evaluated."""
    denoiser.network.cuda()

    def strict(progress: Progress) -> None:
        if progress.step >= progress.steps // 2:
            torch.cuda.set_sync_debug_mode("error")

    try:
        sample(denoiser, (N, 1, 8, 8), CONDITION, GUIDANCES[name], sampler, steps=12, callbacks=[strict])
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", GUIDANCES)
def test_samples_are_those_of_the_cpu(denoiser: Denoiser, name: str):
    def drawn() -> Tensor:
        return sample(denoiser, (N, 1, 8, 8), CONDITION, GUIDANCES[name], DDIM(), steps=10).cpu()

    before = drawn()
    denoiser.network.cuda()
    torch.testing.assert_close(drawn(), before, atol=1e-3, rtol=1e-3)
