"""Pages, as a browser reads them: the standard library's parsers say what is on them."""

import io
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from urllib.request import urlopen

import pytest
from PIL import Image

from guidance.page import element, gallery, inline, media_type

NASTY = "a \"b\" <i>c</i> & 'd' &amp; >{0}"


class Seen(HTMLParser):
    """Elements in order, with what each holds directly."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, Any], list[str]]] = []
        self.open: list[int] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), []))
        if tag not in ("img", "meta"):
            self.open.append(len(self.found) - 1)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.found[self.open.pop()][0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self.open:
            self.found[self.open[-1]][2].append(data)

    def all(self, tag: str) -> list[tuple[dict[str, Any], str]]:
        return [(attributes, "".join(text)) for name, attributes, text in self.found if name == tag]


def only(text: str) -> tuple[str, dict[str, Any], str]:
    """The one element of a text."""
    ((tag, attributes, held),) = Seen(text).found
    return tag, attributes, "".join(held)


def written(folder: Path, name: str, content: bytes = b"\x00\xff\r\nany") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


@pytest.mark.parametrize(
    ("name", "tag", "about"),
    [
        ("000001.png", "img", "alt"),
        ("x.gif", "img", "alt"),
        ("x.svg", "img", "alt"),
        ("000001.wav", "audio", "aria-label"),
        ("x.mp3", "audio", "aria-label"),
        ("x.mp4", "video", "aria-label"),
    ],
)
def test_pictures_and_sounds_are_shown_by_their_type(tmp_path: Path, name: str, tag: str, about: str):
    path = written(tmp_path, name)
    found, attributes, _ = only(element(path))
    assert found == tag and attributes["src"] == attributes[about] == name
    _, attributes, _ = only(element(path, about=NASTY))
    assert attributes["src"] == name and attributes[about] == NASTY
    assert ("controls" in attributes) == (tag != "img") and attributes.get("preload", "none") == "none"
    _, attributes, _ = only(element(path, alone=True))
    assert attributes["src"] == inline(path)


def test_sentences_are_quoted_whatever_they_say(tmp_path: Path):
    path = written(tmp_path, "0.txt", f"  größe 音 {NASTY}\n".encode())
    for alone in (False, True):
        assert only(element(path, alone)) == ("blockquote", {}, f"größe 音 {NASTY}")


@pytest.mark.parametrize("name", ["data.safetensors", "noending", "x.zip"])
def test_what_a_page_cannot_show_is_offered(tmp_path: Path, name: str):
    path = written(tmp_path, name)
    assert only(element(path)) == ("a", {"href": name, "download": name}, name)
    assert only(element(path, alone=True, about=NASTY)) == ("a", {"href": inline(path), "download": name}, NASTY)


@pytest.mark.parametrize(("name", "kind"), [("x.png", "image/png"), ("x.txt", "text/plain"), ("x.zzz", "application/octet-stream")])
def test_an_address_holds_the_file_itself(tmp_path: Path, name: str, kind: str):
    content = bytes(range(256)) * 3 + b"end"
    path = written(tmp_path, name, content)
    with urlopen(inline(path)) as answer:
        assert answer.read() == content and answer.headers.get_content_type() == kind == media_type(path)


def test_a_picture_is_the_same_from_its_address(tmp_path: Path):
    Image.linear_gradient("L").save(tmp_path / "x.png")
    with urlopen(only(element(tmp_path / "x.png", alone=True))[1]["src"]) as answer:
        assert Image.open(io.BytesIO(answer.read())).tobytes() == Image.linear_gradient("L").tobytes()


def test_names_of_files_are_no_html():
    _, attributes, _ = only(element(Path('folder/a"><b>&amp;.png')))
    assert unquote(attributes["src"]) == attributes["alt"] == 'a"><b>&amp;.png' and "%22%3E" in attributes["src"]


def test_a_gallery_has_a_figure_a_file_in_their_order(tmp_path: Path):
    files = [tmp_path / "0.png", tmp_path / "1.wav", written(tmp_path, "2.txt", NASTY.encode())]
    page = gallery(f"title {NASTY}", f"about {NASTY}", files, ["digit=3", NASTY, ""])
    seen = Seen(page)
    assert [tag for tag, _, _ in seen.found if tag in ("img", "audio", "blockquote", "figcaption")] == [
        *("img", "figcaption"),
        *("audio", "figcaption"),
        *("blockquote", "figcaption"),
    ]
    assert [text for _, text in seen.all("figcaption")] == ["digit=3", NASTY, ""]
    assert [text for tag in ("title", "h1") for _, text in seen.all(tag)] == [f"title {NASTY}"] * 2
    assert seen.all("p") == [({}, f"about {NASTY}")] and seen.all("blockquote") == [({}, NASTY)]
    assert seen.all("img") == [({"src": "0.png", "alt": "digit=3"}, "")] and seen.all("audio")[0][0]["aria-label"] == NASTY
    assert not seen.all("i") and len(seen.all("figure")) == 3
    with pytest.raises(ValueError, match="shorter"):
        gallery("", "", files, ["one"])
