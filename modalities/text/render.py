"""Sentences as files and on the screen."""

from collections.abc import Sequence
from pathlib import Path

from guidance.checkpoint import write_atomically


class TextRender:
    """Text files, or nothing but the lines of ``samples.jsonl``."""

    formats = ("txt", "jsonl")

    def save(self, decoded: Sequence[str], folder: Path, names: Sequence[str], format: str | None = None) -> list[Path]:
        if format == "jsonl":
            return []
        return [written(folder / f"{name}.txt", f"{text}\n") for text, name in zip(decoded, names, strict=True)]

    def words(self, decoded: Sequence[str]) -> Sequence[str]:
        return decoded

    def table(self, decoded: Sequence[str], path: Path, rows: Sequence[str], columns: Sequence[str]) -> Path:
        """A paragraph a row, a line a sample."""
        width = max(map(len, columns), default=0)
        paragraphs = []
        for k, row in enumerate(rows):
            texts = decoded[k * len(columns) : (k + 1) * len(columns)]
            lines = [f"{title:{width}}  {text}".strip() for title, text in zip(columns, texts, strict=False)]
            paragraphs.append("\n".join([row, *lines] if row else lines))
        return written(path.with_suffix(".txt"), ("\n\n" if any(rows) or any(columns) else "\n").join(paragraphs) + "\n")

    def animate(self, frames: Sequence[Sequence[str]], path: Path) -> Path:
        """A paragraph a sample, a line a step."""
        return written(path.with_suffix(".txt"), "\n\n".join("\n".join(states) for states in zip(*frames, strict=True)) + "\n")


def written(path: Path, text: str) -> Path:
    write_atomically(path, text.encode())
    return path
