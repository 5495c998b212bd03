"""How clouds are shown: as PLY files, and drawn."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from guidance.checkpoint import write_atomically
from guidance.pictures import Pictures

PLY = "ply\nformat ascii 1.0\nelement vertex {n}\nproperty float x\nproperty float y\nproperty float z\nend_header\n"


def draw(clouds: Tensor, size: int = 80) -> Tensor:
    """Seen from the side and a little above, near points dark: uint8 [n, 1, size, size]."""
    x, y, z = clouds.unbind(2)
    depth, up = 0.87 * y - 0.5 * z, 0.87 * z + 0.5 * y
    place = ((torch.stack([-up, x], 2) / 4.4 + 0.5) * size).long().clamp(1, size - 2)
    shade = (90 + 60 * depth).clamp(0, 200)
    canvas = torch.full((len(clouds), size * size), 255.0)
    for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):  # a point is two by two pixels
        canvas.scatter_reduce_(1, (place[..., 0] + dy) * size + place[..., 1] + dx, shade, "amin")
    return canvas.to(torch.uint8).view(-1, 1, size, size)


class CloudRender:
    formats = ("ply", "png")
    pictures = Pictures(draw)
    table, animate, words = pictures.table, pictures.animate, pictures.words

    def save(self, decoded: Tensor, folder: Path, names: Sequence[str], format: str | None = None) -> list[Path]:
        if format == "png":
            return self.pictures.save(decoded, folder, names, format)
        paths = [folder / f"{name}.ply" for name in names]
        for path, cloud in zip(paths, decoded.tolist(), strict=True):
            rows = "".join(" ".join(f"{number:.5g}" for number in point) + "\n" for point in cloud)
            write_atomically(path, (PLY.format(n=len(cloud)) + rows).encode())
        return paths
