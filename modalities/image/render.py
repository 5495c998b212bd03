"""Pictures of images: files, titled tables, animations."""

from collections.abc import Sequence
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor

from modalities.pictures import animation, sheet, to_pil, write


class ImageRender:
    """PNG files, PNG tables, GIF animations."""

    def save(self, decoded: UInt8[Tensor, "n c h w"], folder: Path, names: Sequence[str]) -> list[Path]:
        return [write(to_pil(image), folder / f"{name}.png") for image, name in zip(decoded, names, strict=True)]

    def words(self, decoded: UInt8[Tensor, "n c h w"]) -> Sequence[str]:
        return ()

    def table(self, decoded: UInt8[Tensor, "n c h w"], path: Path, rows: Sequence[str], columns: Sequence[str]) -> Path:
        return write(sheet(decoded, rows, columns), path)

    def animate(self, frames: Sequence[UInt8[Tensor, "n c h w"]], path: Path) -> Path:
        return animation(frames, path)
