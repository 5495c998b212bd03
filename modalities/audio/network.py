"""DiffWave (Kong et al., 2009.09761): a non-causal stack of dilated convolutions."""

import math
from collections.abc import Mapping, Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from guidance.condition import ByName, Condition, ConditionEmbedding, ConditionSpec, NullEmbedding
from guidance.denoiser import NoiseEmbedding
from guidance.errors import UserError
from guidance.schedule import Discrete
from modalities.audio.mel import Mel

NOISE_WIDTH = 512
LABEL_WIDTH = 128
MEAN_SIZE = math.sqrt(2 / math.pi)  # of a standard normal number


def convolution(inputs: int, outputs: int, kernel: int = 1, dilation: int = 1) -> nn.Conv1d:
    """A convolution that keeps the length, He-initialised."""
    layer = nn.Conv1d(inputs, outputs, kernel, padding=dilation * (kernel // 2), dilation=dilation)
    nn.init.kaiming_normal_(layer.weight)
    return layer


class StepEmbedding(nn.Module):
    """DiffWave's own view of the noise level: the diffusion step of its training betas, 128 sines and cosines, two layers.

    A log-SNR becomes the step (counted from 0, and not whole between two) at which sqrt(alpha-bar) is the same, interpolated
    linearly, as the published model does for its fast schedules. Levels beyond the first and last step count as those.
    """

    roots: Tensor
    table: Tensor

    def __init__(self, betas: Sequence[float], width: int = NOISE_WIDTH):
        super().__init__()
        roots = (1 - torch.tensor(betas, dtype=torch.float64)).cumprod(0).sqrt()
        self.register_buffer("roots", roots, persistent=False)
        # In single precision, whose rounding shifts the fastest of these sines visibly: published weights were trained on that.
        angles = torch.arange(len(betas))[:, None] * 10.0 ** (torch.arange(64) * 4.0 / 63.0)
        self.register_buffer("table", torch.cat([angles.sin(), angles.cos()], 1), persistent=False)
        self.layers = nn.Sequential(nn.Linear(128, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def step(self, logsnr: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        roots = self.roots.double()
        root = logsnr.double().sigmoid().sqrt().clamp(roots[-1], roots[0])
        above = torch.searchsorted(-roots, -root).clamp(1, len(roots) - 1)  # roots fall: roots[above - 1] >= root >= roots[above]
        return above - 1 + (roots[above - 1] - root) / (roots[above - 1] - roots[above])

    def forward(self, logsnr: Float[Tensor, "b"]) -> Float[Tensor, "b width"]:
        step = self.step(logsnr)[:, None]
        mixed = torch.lerp(self.table[step.floor().long()[:, 0]], self.table[step.ceil().long()[:, 0]], (step - step.floor()).float())
        result: Tensor = self.layers(mixed.to(self.layers[0].weight.dtype))
        return result


class MelUpsampler(nn.Module):
    """Mel frames brought to one a position, by transposed convolutions in time that also look at the neighbouring mels."""

    def __init__(self, strides: Sequence[int]):
        super().__init__()
        layers: list[nn.Module] = []
        for stride in strides:
            layers += [nn.ConvTranspose2d(1, 1, (3, 2 * stride), (1, stride), (1, stride // 2)), nn.LeakyReLU(0.4)]
        self.layers = nn.Sequential(*layers)

    def forward(self, mel: Float[Tensor, "b mels frames"]) -> Float[Tensor, "b mels positions"]:
        result: Tensor = self.layers(mel[:, None])[:, 0]
        return result


def strides_of(ratio: float) -> list[int]:
    """Even strides of at most 16 whose product is the ratio: [16, 16] for 256, none for 1."""
    strides: list[int] = []
    while ratio != 1:
        stride = next((s for s in range(16, 1, -2) if ratio % s == 0), None)
        if stride is None:
            raise UserError(f"a mel frame cannot be spread over {ratio:g} positions of the network; choose another data.mel.hop")
        strides.append(stride)
        ratio /= stride
    return strides


def gated(gate: Tensor, filtered: Tensor) -> Tensor:
    """sigmoid(gate) tanh(filtered). In single precision tanh(x) = 1 - 2 sigmoid(-2x): torch's tanh takes six times as long on a CPU."""
    gate = gate.sigmoid()
    if filtered.dtype != torch.float32:
        return gate * filtered.tanh()
    return torch.addcmul(gate, gate, (-2 * filtered).sigmoid_(), value=-2)


WIDE = 128
"""Dilations from here on are taken across rows of an image: oneDNN's kernels for AVX2 are 1.6 times as fast that way, for AVX-512 1.2."""


def convolved(layer: nn.Conv1d, x: Float[Tensor, "b l c"]) -> Float[Tensor, "b l outputs"]:
    """A layer's convolution, with the channels of a position side by side in memory.

    Positions d apart are neighbours in a column of the image of l / d rows of d positions, so that a dilation d is none there.
    """
    d, weight, length = int(layer.dilation[0]), layer.weight, x.shape[1]
    if d >= WIDE and length % d == 0:
        image = x.unflatten(1, (length // d, d)).permute(0, 3, 1, 2)
        return functional.conv2d(image, weight.unsqueeze(3), layer.bias, padding=(1, 0)).permute(0, 2, 3, 1).flatten(1, 2)
    image, place = x.mT.unsqueeze(2), {"padding": (0, int(layer.padding[0])), "dilation": (1, d)}
    return functional.conv2d(image, weight.unsqueeze(2), layer.bias, **place).squeeze(2).mT


def pointwise(layer: nn.Conv1d, x: Float[Tensor, "b l c"], rows: slice = slice(None), factor: float = 1) -> Float[Tensor, "b l outputs"]:
    """``factor`` times a convolution of size 1 (some rows of its outputs), which is a product of matrices."""
    assert layer.bias is not None
    weight, bias = layer.weight[rows, :, 0], layer.bias[rows]
    return functional.linear(x, weight, bias) if factor == 1 else functional.linear(x, factor * weight, factor * bias)


class ResidualLayer(nn.Module):
    """y = tanh(filter) sigmoid(gate) of a dilated convolution of x + noise, plus condition; (x + residual(y)) / sqrt 2, and a skip."""

    def __init__(self, channels: int, dilation: int):
        super().__init__()
        self.dilated = convolution(channels, 2 * channels, 3, dilation)
        self.output = convolution(channels, 2 * channels)

    def forward(
        self, x: Float[Tensor, "b l c"], noise: Float[Tensor, "b 1 c"], condition: Float[Tensor, "b #l c2"] | None
    ) -> tuple[Float[Tensor, "b l c"], Float[Tensor, "b l c"]]:
        y = convolved(self.dilated, x + noise)
        if condition is not None:
            y += condition
        y = gated(*y.chunk(2, 2))
        c, half = x.shape[2], math.sqrt(0.5)  # in two, for halves of a tensor are not in one piece, and slow to add
        return pointwise(self.output, y, slice(c), half).add_(x, alpha=half), pointwise(self.output, y, slice(c, None))


class DiffWave(nn.Module):
    """The DiffWave network, for x of shape [samples], or [rows, positions] where the codec makes frames.

    Args:
        shape, conditions: of the data.
        channels, layers, cycle: the paper's BASE has 64, 30, 10; LARGE 128; dilations are 2^(i mod cycle).
        patch: samples seen as one position. 1 in the paper; 8 or 16 cost an eighth or a sixteenth, and frames of a codec
            need none.
        steps: the schedule whose step number the network sees, as published; None: it sees the log-SNR.
        mask: the output is m * x_t + r instead of r alone, and the network is shown |x_t| beside x_t. Coefficients of a transform
            have signs that are as good as random: the best guess of one is then itself, shrunk by how large it should be, and a
            network that can only add learns that slowly.

    Attributes with classes or numbers share an embedding of 128, which each layer projects to a bias; a mel spectrogram is brought
    to the positions of x and projected by each layer. Both are done by `embed`, once a run.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        conditions: Mapping[str, ConditionSpec],
        channels: int = 64,
        layers: int = 30,
        cycle: int = 10,
        patch: int = 1,
        steps: Discrete | None = None,
        mask: bool = False,
    ):
        super().__init__()
        if channels < 1 or layers < 1 or cycle < 1 or patch < 1:
            raise UserError("network.channels, layers, cycle and patch are at least 1")
        if len(shape) not in (1, 2):
            raise UserError(f"network=diffwave is for sound, of samples, or rows and positions; this data is of shape {list(shape)}")
        if len(shape) == 1 and shape[0] % patch:
            raise UserError(f"clips of {shape[0]} samples cannot be cut into patches of {patch}; choose network.patch to divide them")
        if len(shape) == 2 and patch != 1:
            raise UserError("network.patch is for raw samples; the codec makes frames already, so leave it at 1")
        self.shape, self.channels, self.patch, self.mask = shape, channels, patch, mask
        rows = patch if len(shape) == 1 else shape[0]
        self.input = convolution(2 * rows if mask else rows, channels)
        self.noise = NoiseEmbedding(NOISE_WIDTH) if steps is None else StepEmbedding(steps.betas)
        self.noise_projection = nn.Linear(NOISE_WIDTH, layers * channels)
        self.layers = nn.ModuleList(ResidualLayer(channels, 2 ** (i % cycle)) for i in range(layers))
        labels = {name: spec for name, spec in conditions.items() if not isinstance(spec, Mel)}
        self.labels = ConditionEmbedding(labels, LABEL_WIDTH)
        self.label_projection = nn.Linear(LABEL_WIDTH, layers * 2 * channels) if labels else None
        positions = shape[-1] // patch
        self.mels = ByName()
        for name, spec in conditions.items():
            if isinstance(spec, Mel):
                upsampler = MelUpsampler(strides_of(spec.hop * positions / spec.length))
                given = NullEmbedding(nn.Identity(), (spec.mels, 1))  # what stands for an absent spectrogram is one too
                projection = convolution(spec.mels, layers * 2 * channels)
                self.mels[name] = nn.ModuleDict({"given": given, "upsampler": upsampler, "projection": projection})
        self.skip = convolution(channels, channels)
        self.output = convolution(channels, 2 * rows if mask else rows)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def embed(self, condition: Condition) -> tuple[Float[Tensor, "b layers #l c2"] | None, ...]:
        """What each layer adds after its dilated convolution: of the attributes, and of the mels."""
        depth = len(self.layers)
        label = self.labels(condition)
        bias = None
        if label is not None and self.label_projection is not None:
            bias = rearrange(self.label_projection(label), "b (layers c) -> b layers 1 c", layers=depth)
        mels = []
        for name, part in self.mels.items():
            spread = part["upsampler"](part["given"](condition.values[name], condition.keep[name]))
            mels.append(rearrange(part["projection"](spread), "b (layers c) l -> b layers l c", layers=depth).contiguous())
        if mels:
            return (sum(mels, start=bias if bias is not None else 0),)
        return (bias,)

    def forward(
        self, x_t: Float[Tensor, "b *d"], logsnr: Float[Tensor, "b"], context: tuple[Tensor | None, ...], x0_hat: Tensor | None = None
    ) -> Float[Tensor, "b *d"]:
        raw = x_t.ndim == 2
        shown = rearrange(x_t, "b (l p) -> b p l", p=self.patch) if raw else x_t
        output = pointwise(self.output, pointwise(self.skip, self._skips(shown, logsnr, context)).relu_()).mT
        if self.mask:
            shrunk, added = output.chunk(2, 1)
            output = torch.addcmul(added, shrunk, shown)
        return rearrange(output, "b p l -> b (l p)") if raw else output

    def features(
        self, x_t: Float[Tensor, "b *d"], logsnr: Float[Tensor, "b"], context: tuple[Tensor | None, ...], x0_hat: Tensor | None = None
    ) -> Float[Tensor, "b channels"]:
        """The sum of the layers' skips, the mean over positions."""
        shown = rearrange(x_t, "b (l p) -> b p l", p=self.patch) if x_t.ndim == 2 else x_t
        return self._skips(shown, logsnr, context).mean(1)

    def _skips(
        self, shown: Float[Tensor, "b p l"], logsnr: Float[Tensor, "b"], context: tuple[Tensor | None, ...]
    ) -> Float[Tensor, "b l channels"]:
        """The sum of all layers' skips, by the root of their number."""
        shown = torch.cat([shown, shown.abs() - MEAN_SIZE], 1) if self.mask else shown
        x = pointwise(self.input, shown.mT.contiguous()).relu_()
        (condition,) = context
        noise = self.noise_projection(self.noise(logsnr)).to(x.dtype).unflatten(1, (len(self.layers), 1, self.channels))
        total = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
        # Taken apart once: the gradient of each layer's own piece would be as large as the whole.
        conditions = [None] * len(self.layers) if condition is None else condition.to(x.dtype).unbind(1)
        for layer, shift, given in zip(self.layers, noise.unbind(1), conditions, strict=True):
            x, skip = layer(x, shift, given)
            total += skip
        return (total * math.sqrt(1 / len(self.layers))).to(x.dtype)
