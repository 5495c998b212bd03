"""Saved samples as HTML: pictures, players, sentences."""

import base64
import html
import mimetypes
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>
body {{ font: 15px system-ui, sans-serif; margin: 2em; }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(16em, 1fr)); gap: 1em; }}
figure {{ margin: 0; }} figcaption {{ color: #555; }} img {{ width: 100%; image-rendering: pixelated; }} audio {{ width: 100%; }}
</style>
<h1>{title}</h1>
<p>{about}</p>
<main>
{figures}
</main>
</html>
"""


def media_type(file: Path) -> str:
    kind, encoding = mimetypes.guess_type(file.name)
    return kind if kind and not encoding else "application/octet-stream"


SHOWN = {
    "image": ("png", "jpeg", "gif", "webp", "avif", "bmp", "svg+xml"),
    "audio": ("mpeg", "ogg", "flac", "x-flac", "wav", "x-wav", "mp4", "aac", "webm"),
    "video": ("mp4", "webm", "ogg"),
    "text": ("plain",),
}
"""What browsers show of themselves."""


def shown_as(file: Path) -> str:
    """How a page can show a file: as an image, audio, video or text; "" where it can only be downloaded (MIDI, PLY)."""
    kind, _, form = media_type(file).partition("/")
    return kind if form in SHOWN.get(kind, ()) else ""


def inline(file: Path) -> str:
    """A file's content as an address, so that a page needs no other file."""
    return f"data:{media_type(file)};base64,{base64.b64encode(file.read_bytes()).decode()}"


def element(file: Path, alone: bool = False, about: str = "") -> str:
    """HTML that shows a file, by its type: for a page in the same folder, or for one that stands ``alone`` and holds the content."""
    source = inline(file) if alone else quote(file.name)
    about = html.escape(about or file.name)
    match shown_as(file):
        case "image":
            return f'<img src="{source}" alt="{about}">'
        case "audio":
            return f'<audio controls preload="none" src="{source}" aria-label="{about}"></audio>'
        case "video":
            return f'<video controls preload="none" src="{source}" aria-label="{about}"></video>'
        case "text":
            return f"<blockquote>{html.escape(file.read_text(encoding='utf-8').strip())}</blockquote>"
    return f'<a href="{source}" download="{html.escape(file.name)}">{about}</a>'


def gallery(title: str, about: str, files: Sequence[Path], captions: Sequence[str], together: Path | None = None) -> str:
    """A page in the files' folder, with a figure a file; ``together``: a picture of all, above them."""
    figures = (
        f"<figure>{element(file, about=caption)}<figcaption>{html.escape(caption)}</figcaption></figure>"
        for file, caption in zip(files, captions, strict=True)
    )
    above = "" if together is None else f"\n<p>{element(together, about='all samples')}</p>"
    return PAGE.format(title=html.escape(title), about=html.escape(about) + above, figures="\n".join(figures))
