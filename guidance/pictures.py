"""Sheets of titled pictures, whatever modality they show."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from guidance.checkpoint import write_atomically


def to_pil(image: UInt8[Tensor, "c h w"]) -> Any:
    from PIL import Image

    array = image.permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def write(picture: Any, path: Path, **options: Any) -> Path:
    buffer = BytesIO()
    picture.save(buffer, format=path.suffix[1:].upper(), **options)
    write_atomically(path, buffer.getvalue())
    return path


FRAME = (225, 225, 225)


def sheet(pictures: UInt8[Tensor, "n c h w"], rows: Sequence[str], columns: Sequence[str]) -> Any:
    """len(rows) x len(columns) pictures with titles; small ones are enlarged, their pixels staying squares."""
    from PIL import Image, ImageDraw, ImageFont

    height, width = pictures.shape[-2:]
    zoom = max(1, 56 // max(height, width))
    cell, gap = (width * zoom, height * zoom), 3
    font = ImageFont.load_default(size=13)
    left = 8 + max((int(font.getlength(title)) for title in rows), default=0)
    top = 20 if any(columns) else gap
    size = (left + len(columns) * (cell[0] + gap) + gap, top + len(rows) * (cell[1] + gap) + gap)
    made = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(made)
    for k, title in enumerate(columns):
        pen.text((left + k * (cell[0] + gap) + cell[0] / 2, top / 2), title, "black", font, anchor="mm")
    for k, picture in enumerate(pictures):
        row, column = divmod(k, len(columns))
        at = left + column * (cell[0] + gap), top + row * (cell[1] + gap)
        pen.rectangle((at[0] - 1, at[1] - 1, at[0] + cell[0], at[1] + cell[1]), outline=FRAME)  # white pictures lie on white
        made.paste(to_pil(picture).convert("RGB").resize(cell, Image.Resampling.NEAREST), at)
    for k, title in enumerate(rows):
        pen.text((left - 5, top + k * (cell[1] + gap) + cell[1] / 2), title, "black", font, anchor="rm")
    return made


def animation(frames: Sequence[UInt8[Tensor, "n c h w"]], path: Path, milliseconds: int = 80) -> Path:
    """A GIF of square-ish sheets, the last one shown longer."""
    columns = int(np.ceil(np.sqrt(len(frames[0]))))
    rows = -(-len(frames[0]) // columns)
    sheets = [sheet(frame, [""] * rows, [""] * columns) for frame in frames]
    durations = [milliseconds] * (len(sheets) - 1) + [1500]
    return write(sheets[0], path, save_all=True, append_images=sheets[1:], duration=durations, loop=0)


OPTIONS: Mapping[str, Mapping[str, Any]] = {"webp": {"lossless": True}, "jpeg": {"quality": 95}}


@dataclass(frozen=True)
class Pictures:
    """A `Render` that shows every sample as a picture: ``draw`` makes uint8 pictures [n, channels, h, w] of decoded samples."""

    draw: Callable[[Any], UInt8[Tensor, "n c h w"]]

    formats = ("png", "webp", "jpeg", "tiff")  # all but jpeg without loss

    def save(self, decoded: Any, folder: Path, names: Sequence[str], format: str | None = None) -> list[Path]:
        suffix = format or self.formats[0]
        options = OPTIONS.get(suffix, {})
        pictures = [to_pil(picture) for picture in self.draw(decoded)]
        if suffix == "jpeg":  # which knows no transparency
            pictures = [picture.convert("RGB") if picture.mode == "RGBA" else picture for picture in pictures]
        return [write(picture, folder / f"{name}.{suffix}", **options) for picture, name in zip(pictures, names, strict=True)]

    def words(self, decoded: Any) -> Sequence[str]:
        return ()

    def table(self, decoded: Any, path: Path, rows: Sequence[str], columns: Sequence[str]) -> Path:
        return write(sheet(self.draw(decoded), rows, columns), path)

    def animate(self, frames: Sequence[Any], path: Path) -> Path:
        return animation([self.draw(frame) for frame in frames], path)
