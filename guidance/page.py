"""A page of samples, to open in a browser: what each was asked for, and the sample itself."""

import html
from collections.abc import Callable, Sequence
from pathlib import Path

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
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


def gallery(title: str, about: str, files: Sequence[Path], captions: Sequence[str], element: Callable[[Path], str]) -> str:
    """HTML with a figure a file; ``element`` is the modality's own way to show one."""
    figures = (
        f"<figure>{element(file)}<figcaption>{html.escape(caption)}</figcaption></figure>"
        for file, caption in zip(files, captions, strict=True)
    )
    return PAGE.format(title=html.escape(title), about=html.escape(about), figures="\n".join(figures))
