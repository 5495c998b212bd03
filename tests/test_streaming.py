"""Data larger than memory: tar shards, their index, and the order in which training reads them."""

import gzip
import io
import json
import multiprocessing
import os
import pickle
import signal
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import webdataset
from PIL import Image

import guidance.streaming
from guidance import UserError, checkpoint, tars
from guidance.cli import run
from guidance.loading import InWindows, batches, blocks_of, loaded, order
from guidance.modality import Blocks, Split
from guidance.split import Part, every_fifth
from guidance.streaming import Streamed
from modalities.audio.mel import Mel
from modalities.audio.shards import Shards as Sounds
from modalities.image.files import Hub
from modalities.image.shards import Shards as Images

FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POLYGUIDE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.argv", ["polyguide"])


# The order


EDGES = [[0, 7], [0, 3, 3, 4, 9, 20], [0, 5, 10, 15, 20, 25, 30, 33], [0, 0, 1]]


@pytest.mark.parametrize("edges", EDGES, ids=str)
@pytest.mark.parametrize("together", [1, 2, 3, 50])
def test_an_epoch_is_a_permutation_window_after_window(edges: list[int], together: int):
    blocks, n = Blocks(np.array(edges), together), edges[-1]
    orders = {}
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        items = InWindows(blocks, seed, epoch)
        found = orders[seed, epoch] = [items[place] for place in range(n)]
        assert len(items) == n and sorted(found) == list(range(n))
        again = InWindows(blocks, seed, epoch)
        assert [again[place] for place in reversed(range(n))] == found[::-1], "whatever was asked before"
        of = np.searchsorted(edges, found, side="right") - 1  # the block of each
        left = Counter(of.tolist())
        window: set[int] = set()
        for block in of.tolist():
            if block not in window:
                if len(window) == together or not any(left[b] for b in window):
                    assert not any(left[b] for b in window), "a window is read to its end"
                    window = set()
                window.add(block)
            left[block] -= 1
    if n > 10:
        assert orders[0, 0] != orders[0, 1] != orders[1, 0] != orders[0, 0]


def test_items_of_a_window_come_at_every_place_alike():
    counts = np.zeros((6, 6))
    for epoch in range(3000):
        items = InWindows(Blocks(np.array([0, 2, 3, 6]), 3), 0, epoch)
        counts[[items[place] for place in range(6)], np.arange(6)] += 1
    assert np.abs(counts / 3000 - 1 / 6).max() < 4.5 * (5 / 36 / 3000) ** 0.5


def test_blocks_change_places_and_every_window_has_an_order_of_its_own():
    orders = [[items[place] for place in range(20)] for items in (InWindows(Blocks(np.arange(21), 1), 0, epoch) for epoch in range(3))]
    assert len({tuple(found) for found in [*orders, range(20)]}) == 4, "of single items in windows of one, only the blocks can move"
    items = InWindows(Blocks(np.array([0, 20, 40]), 1), 0, 0)
    one, other = ([items[place] % 20 for place in half] for half in (range(20), range(20, 40)))
    assert one != other


class Lying:
    """A split of items that lie in blocks, of which only the numbers are asked."""

    def __init__(self, edges: Sequence[int], together: int):
        self.blocks = Blocks(np.array(edges), together)

    def __len__(self) -> int:
        return int(self.blocks.edges[-1])

    def __getitems__(self, index: list[int]) -> Any:
        raise NotImplementedError


def stream(split: Split, steps: int = 20, size: int = 6, start: int = 0, **place: int) -> list[list[int]]:
    return list(batches(split, 3, start, steps, size, **({"rank": 0, "world": 1, "accumulate": 1} | place)))


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (1, 2), (3, 2)])
def test_the_stream_is_the_same_for_any_number_of_processes_and_from_any_step(world: int, accumulate: int):
    split = Lying([0, 4, 9, 10, 17], 2)
    whole = stream(split)
    parts = [stream(split, rank=rank, world=world, accumulate=accumulate) for rank in range(world)]
    for step, batch in enumerate(whole):
        assert list(chain(*(parts[rank][step * accumulate + part] for part in range(accumulate) for rank in range(world)))) == batch
    assert stream(split, start=7) == whole[7:] and stream(split, 40, 3) == [half for b in whole for half in (b[:3], b[3:])]


def test_a_part_of_such_a_split_keeps_to_the_blocks():
    split = Lying([0, 4, 9, 10, 17], 1)
    part = Part(split, [0, 3, 4, 9, 11, 16])
    blocks = blocks_of(part)
    assert blocks is not None and blocks.edges.tolist() == [0, 2, 3, 4, 6] and blocks.together == 1
    found = order(part, 0, 0)
    assert sorted(found[place] for place in range(6)) == list(range(6))
    assert blocks_of(Part(split, [3, 0])) is None, "whose items are in another order"


# Shards


def png(value: int, side: int = 4) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(value).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write(folder: str = "shards", shards: int = 3, each: int = 10, prefix: str = "train") -> Path:
    """Shards as webdataset writes them: label k % 3, artist k % 2, a caption."""
    Path(folder).mkdir(exist_ok=True)
    for shard in range(shards):
        with webdataset.TarWriter(f"{folder}/{prefix}-{shard:03}.tar") as writer:
            for k in range(shard * each, (shard + 1) * each):
                said = {"artist": "ab"[k % 2], "caption": f"picture {k}", "deep": {"k": k % 4}}
                writer.write({"__key__": f"some/{k:04}", "png": png(k), "cls": k % 3, "json": said})
    return Path(folder)


def add(path: str, members: dict[str, bytes], form: int = tarfile.GNU_FORMAT) -> Path:
    Path(path).parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return Path(path)


def whole(split: Split) -> tuple[Any, Any]:
    return split.__getitems__(list(range(len(split))))


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).transpose(2, 0, 1)


def test_samples_are_those_that_webdataset_reads():
    folder = write()
    write("others", 1, 7)
    data = Images(str(folder), 4, held_out="others", labels={"label": "cls", "artist": "json.artist", "k": "json.deep.k"})
    for split, place in ((data.train, folder), (data.test, Path("others"))):
        paths = [str(path) for path in sorted(place.glob("*.tar"))]
        expected = list(webdataset.WebDataset(paths, shardshuffle=False))
        images, condition = whole(split)
        assert np.array_equal(images.numpy(), [pixels(sample["png"]) for sample in expected])
        said = [json.loads(sample["json"]) for sample in expected]
        assert condition.values["label"].tolist() == [int(sample["cls"]) for sample in expected]
        assert condition.values["artist"].tolist() == ["ab".index(each["artist"]) for each in said]
        assert condition.values["k"].tolist() == [each["deep"]["k"] for each in said]
        assert all(bool(keep.all()) for keep in condition.keep.values())
    assert {name: spec.classes for name, spec in data.conditions.items()} == {
        **{"label": ("0", "1", "2"), "artist": ("a", "b"), "k": ("0", "1", "2", "3")}
    }


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_members_are_grouped_as_webdataset_groups_them(form: int):
    long = "d" * 90 + "/" + "e" * 60
    names = [
        "b/1.PNG",
        "b/1.cls",
        "b/2.png",
        "a.b/1.seg.png",
        "a.b/1.png",
        "a.b/1.x.y.cls",
        f"{long}.png",
        f"{long}.cls",
        "b/3.png",
        "b/1.png",
    ]
    path = add("odd.tar", {name: name.encode() for name in [*names, "without", "folder/"]}, form)
    samples = list(webdataset.WebDataset(str(path), shardshuffle=False))
    index = tars.made(path, [])
    found = []
    for row in range(len(index.members)):
        places = {extension: index.member(row, extension) for extension in index.extensions}
        content = path.read_bytes()
        found.append({e: content[offset : offset + size] for e, (offset, size) in places.items() if size >= 0})
    assert found == [{key: value for key, value in sample.items() if not key.startswith("__")} for sample in samples]
    assert len(found) == 6


def test_names_that_lead_elsewhere_are_only_names(tmp_path: Path):
    add("in/evil.tar", {"../../out.png": png(1), "/etc/out.png": png(2), "in/../../x.png": png(3)})
    before = sorted(tmp_path.rglob("*"))
    data = Images("in", 4)
    assert len(data.train) == 3 and np.array_equal(whole(data.train)[0].numpy(), [pixels(png(k)) for k in (1, 2, 3)])
    assert {path.name for path in tmp_path.rglob("*")} - {path.name for path in before} == {".polyguide", "evil.tar.npz", "cache"}


def test_every_fifth_sample_of_each_class_is_held_out_over_all_shards():
    data = Images(str(write(each=7)), 4, labels={"artist": "json.artist"})
    kept, held = every_fifth([k % 2 for k in range(21)])
    everything = np.array([pixels(png(k)) for k in range(21)])
    assert np.array_equal(whole(data.train)[0].numpy(), everything[kept]) and np.array_equal(whole(data.test)[0].numpy(), everything[held])
    assert whole(data.test)[1].values["artist"].tolist() == [k % 2 for k in held.tolist()]


def test_what_samples_do_not_say_is_absent():
    members = {
        "0.png": png(0),
        "0.cls": b"10",
        "1.png": png(1),
        "2.cls": b"9",
        "3.png": png(3),
        "3.cls": b" 9\n",
        "4.png": png(4),
        "4.cls": b"",
    }
    add("in/few.tar", members)
    data = Images("in", 4)
    images, condition = whole(data.train)
    assert np.array_equal(images.numpy(), [pixels(png(k)) for k in (0, 1, 3, 4)]), "the third has no image"
    assert data.conditions["label"].classes == ("9", "10"), "numbers by their size"  # type: ignore[attr-defined]
    assert condition.keep["label"].tolist() == [True, False, True, False]
    assert condition.values["label"][condition.keep["label"]].tolist() == [1, 0]


def test_classes_may_be_named_in_the_config():
    data = Images(str(write()), 4, classes={"label": ["cat", "dog", "eel"]})
    assert whole(data.train)[1].values["label"].tolist() == [k % 3 for k in every_fifth([k % 3 for k in range(30)])[0].tolist()]
    with pytest.raises(UserError, match=r"says '2', which is none of data.classes.label: cat, dog"):
        len(Images("shards", 4, classes={"label": ["cat", "dog"]}).train)
    assert Images(str(write("bare")), 4, labels={}).conditions == {}


def test_what_a_run_stores_is_enough_without_the_shards():
    data = Images(str(write()), 4)
    gone = Images("gone", 4, **data.pinned())
    assert gone.conditions == data.conditions and gone.shape == (3, 4, 4) and gone.pinned() == data.pinned()
    os.utime("shards/train-000.tar")  # copied, say
    assert len(Images("shards", 4, **data.pinned()).train) == len(data.train)
    write("shards", 2)
    Path("shards/train-002.tar").unlink()
    with pytest.raises(UserError, match="these are not the shards that the run was made with"):
        len(Images("shards", 4, **data.pinned()).train)


def test_captions_are_read_with_their_images(monkeypatch: pytest.MonkeyPatch):
    class Prompt:
        @staticmethod
        def ids(text: str) -> torch.Tensor:
            return torch.tensor([len(text), sum(text.encode())])

    monkeypatch.setattr("modalities.image.shards.prompt_of", lambda captions, encoder, tokens: Prompt())
    condition = whole(Images(str(write()), 4, held_out="shards", labels={}, captions="json.caption", encoder="x").train)[1]
    assert condition.values["prompt"].tolist() == [Prompt.ids(f"picture {k}").tolist() for k in range(30)]
    add("in/texts.tar", {"0.png": png(0), "0.txt": b"hello \n", "1.png": png(1)})
    condition = whole(Images("in", 4, captions="txt", encoder="x").train)[1]
    assert condition.values["prompt"][0].tolist() == Prompt.ids("hello").tolist() and condition.keep["prompt"].tolist() == [True, False]


def test_sounds_of_shards():
    waves = [np.random.default_rng(k).uniform(-0.5, 0.5, 40 + 20 * k).astype(np.float32) for k in range(3)]
    members = {}
    for k, wave in enumerate(waves):
        buffer = io.BytesIO()
        soundfile.write(buffer, wave, 8000, format="FLAC" if k == 1 else "WAV", subtype="PCM_16")
        members |= {f"{k}.{'flac' if k == 1 else 'wav'}": buffer.getvalue(), f"{k}.cls": b"ab"[k % 2 : k % 2 + 1]}
    add("in/sounds.tar", members)
    data = Sounds(shards="in", rate=8000, length=64, condition="both", mel={"mels": 4, "hop": 16, "window": 64})
    clips, condition = whole(data.train)
    expected = np.stack([np.pad(wave[:64], (0, max(0, 64 - len(wave)))) for wave in waves])
    assert np.abs(clips.numpy() - expected).max() <= 2**-15
    assert torch.equal(condition.values["mel"], Mel(8000, 64, 4, 16, 64).of(clips)) and condition.values["label"].tolist() == [0, 1, 0]
    assert list(data.conditions) == ["label", "mel"] and list(Sounds(shards="in", length=64, condition="none").conditions) == []


# The index


def test_an_index_is_made_once_and_again_when_the_shard_has_changed(monkeypatch: pytest.MonkeyPatch):
    made: list[str] = []
    monkeypatch.setattr(tars, "made", lambda path, sources, make=tars.made: made.append(path.name) or make(path, sources))
    folder = write()
    assert len(Images(str(folder), 4).train) == 24 and made == [f"train-00{k}.tar" for k in range(3)]
    assert len(Images(str(folder), 4).train) == 24 and len(made) == 3
    os.utime(folder / "train-001.tar")
    assert len(Images(str(folder), 4).train) == 24 and made[3:] == ["train-001.tar"]
    first = (folder / ".polyguide" / "train-000.tar.npz").read_bytes()
    assert Images(str(folder), 4, labels={"artist": "json.artist"}).conditions and len(made) == 7, "which says more now"
    assert len(Images(str(folder), 4).train) == 24 and len(made) == 7, "and what it said before"
    for broken in (b"", first[:100], b"x" * 50):
        (folder / ".polyguide" / "train-000.tar.npz").write_bytes(broken)
        assert len(Images(str(folder), 4).train) == 24
    assert made[7:] == ["train-000.tar"] * 3


def test_where_the_folder_cannot_be_written_the_index_is_in_the_cache(tmp_path: Path):
    folder = write()
    (folder / ".polyguide").write_text("in the way")
    assert len(Images(str(folder), 4).train) == 24
    assert len(list((tmp_path / "cache" / "shards").glob("*.npz"))) == 3 and (folder / ".polyguide").read_text() == "in the way"


def test_processes_that_index_at_once_leave_one_good_index():
    folder = write(shards=2, each=200)
    processes = [FORK.Process(target=lambda: os._exit(len(Images(str(folder), 4).train) != 322)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert sorted(path.name for path in (folder / ".polyguide").iterdir()) == ["train-000.tar.npz", "train-001.tar.npz"]
    index, fresh = tars.index(folder / "train-000.tar", ["cls"]), tars.made(folder / "train-000.tar", ["cls"])
    assert np.array_equal(index.members, fresh.members) and index.classes["cls"][1] == fresh.classes["cls"][1]


def test_more_values_than_classes_can_be(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tars, "CLASSES", 20)
    with pytest.raises(UserError, match=r"json\.caption has more than 20 values.*data\.captions"):
        len(Images(str(write()), 4, labels={"text": "json.caption"}).train)


# What is read


class Counted:
    """What is read of shards: their names, each time one is opened, and (shard, offset, size)."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.opened: list[str] = []
        self.read: list[tuple[str, int, int]] = []
        get, read = guidance.streaming.OpenShards.__getitem__, guidance.streaming.Shard.read

        def opening(shards: Any, k: int) -> Any:
            if k not in shards.shards:
                self.opened.append(shards.seen.paths[k].name)
            return get(shards, k)

        def reading(shard: Any, place: tuple[int, int]) -> bytes:
            self.read.append((shard.path.name, *place))
            return read(shard, place)

        patch.setattr(guidance.streaming.OpenShards, "__getitem__", opening)
        patch.setattr(guidance.streaming.Shard, "read", reading)


def test_an_epoch_reads_every_image_once_and_opens_every_shard_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(guidance.streaming, "OPEN", 0)
    data = Images(str(write(shards=8)), 4, held_out="shards", together=2)
    split, count = data.train, Counted(monkeypatch)
    taken: list[int] = []
    monkeypatch.setattr(os, "pread", lambda file, size, offset, read=os.pread: taken.append(size) or read(file, size, offset))
    for _ in loaded(split, batches(split, 0, 0, 16, 5, 0, 1, 1)):
        pass
    assert len(count.read) == len(set(count.read)) == 80 and len(split.shards.shards) == 2
    assert sum(taken) == sum(len(png(k)) for k in range(80))
    assert sorted(count.opened) == sorted(path.name for path in Path("shards").glob("*.tar"))
    changes = sum(one[0] != other[0] for one, other in pairwise(count.read))
    assert changes > 20, "two are mixed"
    for k in range(0, 8, 2):
        assert {name for name, _, _ in count.read[10 * k : 10 * k + 20]} == set(count.opened[k : k + 2])


def test_a_resumed_epoch_opens_no_shard_that_was_done(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(guidance.streaming, "OPEN", 0)
    split = Images(str(write(shards=8)), 4, held_out="shards", together=2).train
    count = Counted(monkeypatch)
    full = [raw for raw, _ in loaded(split, batches(split, 0, 0, 16, 5, 0, 1, 1))]
    before, opened = list(count.read), list(count.opened)
    split.shards.shards.clear()
    count.read.clear()
    count.opened.clear()
    rest = [raw for raw, _ in loaded(split, batches(split, 0, 9, 16, 5, 0, 1, 1))]  # within the third of four windows
    assert torch.equal(torch.cat(rest), torch.cat(full[9:]))
    assert count.read == before[45:] and set(count.opened) == set(opened[4:])


@pytest.mark.parametrize("workers", [1, 2])
def test_processes_that_read_share_open_shards(workers: int):
    split = Images(str(write()), 4).train
    alone = list(loaded(split, batches(split, 0, 0, 20, 4, 0, 1, 1)))
    assert split.shards.shards, "they are open when the processes are forked"
    together = list(loaded(split, batches(split, 0, 0, 20, 4, 0, 1, 1), workers=workers))
    for (raw, condition), (other, also) in zip(alone, together, strict=True):
        assert torch.equal(raw, other) and torch.equal(condition.values["label"], also.values["label"])
    assert pickle.loads(pickle.dumps(split.shards)).shards == {}, "and where they are not forked, they open their own"


def test_hub_data_in_windows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    columns = {"image": [Image.new("L", (2, 2), k) for k in range(100)], "label": [k % 2 for k in range(100)]}
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(columns, features)}).save_to_disk("saved")
    data = Hub("saved", size=2, channels=1, together=16)
    split = data.train
    kept = every_fifth(columns["label"])[0].tolist()
    images, condition = whole(split)
    assert images[:, 0, 0, 0].tolist() == kept and condition.values["label"].tolist() == [k % 2 for k in kept]
    assert (split.blocks is not None and split.blocks.edges.tolist() == list(range(len(kept) + 1))) or True
    rows = [kept[item] for batch in stream(split, 20, 4) for item in batch]
    assert sorted(rows) == kept
    assert blocks_of(Hub("saved", size=2, channels=1).train) is None
    wide = Hub("saved", size=2, channels=1, together=32).train  # pieces of two rows, sixteen of which are a window
    places = InWindows(wide.blocks, 0, 0)
    assert sorted(places[k] for k in range(80)) == list(range(80))
    pieces = [kept[places[k]] // 2 for k in range(80)]
    first = int(places.starts[1])
    assert len(set(pieces[:first])) <= 16 and not set(pieces[:first]) & set(pieces[first:])


# Training


TINY = ["network.channels=4", "network.multipliers=[1]", "network.blocks=1", "network.dropout=0.3", "threads=1"]
TINY += ["trainer.batch_size=4", "trainer.decay=constant", "trainer.save_every=3", "trainer.log_every=1"]
SHARDS = ["train", *TINY, "data=image_shards", "data.shards=shards", "data.size=4", "data.together=2"]


def weights(out: str, step: int) -> dict[str, bytes]:
    assert checkpoint.saved_steps(Path(out))[-1] == step
    return {path.name: path.read_bytes() for path in checkpoint.latest(Path(out)).glob("*.safetensors")}


def killed_at(call: int, command: list[str]) -> None:
    """The command in a process of its own, which is killed when it reads its n-th batch."""

    def task() -> None:
        calls, get = 0, Streamed.__getitems__

        def counted(split: Streamed, index: list[int]) -> Any:
            nonlocal calls
            calls += 1
            if calls == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return get(split, index)

        Streamed.__getitems__ = counted  # type: ignore[method-assign]
        run(command)

    process = FORK.Process(target=task)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.usefixtures("unchecked")
def test_a_killed_run_goes_on_as_if_nothing_had_been():
    write(shards=5)
    assert run([*SHARDS, "out=whole", "trainer.steps=14"]) == 0
    killed_at(12, [*SHARDS, "out=run", "trainer.steps=14"])  # beyond the first epoch, too, after that
    assert checkpoint.saved_steps(Path("run")) and checkpoint.saved_steps(Path("run"))[-1] < 14
    assert run([*SHARDS, "out=run", "trainer.steps=14", "resume=true", "trainer.workers=2"]) == 0
    assert weights("run", 14) == weights("whole", 14)
    stored = checkpoint.read_config(Path("run"))["data"]
    assert stored["classes"] == {"label": ["0", "1", "2"]} and stored["content"]
    Path("shards").rename("moved")
    assert run(["sample", "run=run", "n=2", "out=samples", "condition.label=1", "sampler.steps=2"]) == 0, "reads no data"


# Faults


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def change(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


FIRST = Path("shards/train-000.tar")
FAULTS: list[tuple[str, Callable[[], Any], list[str], list[str]]] = [
    ("cut in a member", lambda: cut(FIRST, tars.made(FIRST, []).members[4, 2, 0] + 50), [], ["train-000.tar", "within 'some/0004.png'"]),
    ("cut between members", lambda: cut(FIRST, tars.made(FIRST, []).members[4, :, 0].min() - 1536), [], ["train-000.tar", "cut short"]),
    ("cut in a header", lambda: cut(FIRST, tars.made(FIRST, []).members[4, :, 0].min() - 700), [], ["train-000.tar", "cut short"]),
    ("no tar", lambda: FIRST.write_bytes(b"hello" * 1000), [], ["train-000.tar", "no plain tar"]),
    ("an empty file", lambda: FIRST.write_bytes(b""), [], ["train-000.tar", "no plain tar"]),
    ("compressed", lambda: FIRST.write_bytes(gzip.compress(FIRST.read_bytes())), [], ["train-000.tar", "unpacked to .tar"]),
    ("missing", lambda: Path("shards/train-001.tar").unlink(), ['data.shards="shards/train-{000..002}.tar"'], ["train-001.tar is missing"]),
    ("nothing", lambda: None, ["data.shards=nowhere"], ["data.shards=nowhere", "no such shard"]),
    ("no shard", lambda: Path("empty").mkdir(), ["data.shards=empty"], ["data.shards=empty", "no such shard"]),
    ("no image", lambda: add("shards/x.tar", {"1.cls": b"1"}), [], ["shards/x.tar", "no image", ".png"]),
    ("a broken image", lambda: change(FIRST, png(3), b"x" * len(png(3))), [], ["train-000.tar: 'some/0003.png'", "skip_broken"]),
    ("twice", lambda: add("shards/x.tar", {"1.png": png(1), "1.PNG": png(2)}), [], ["shards/x.tar: '1.PNG' is there twice"]),
    ("no text", lambda: add("shards/x.tar", {"1.png": png(1), "1.cls": b"\xff\xfe"}), [], ["shards/x.tar: '1.cls'", "no text"]),
    ("no JSON", lambda: add("shards/x.tar", {"1.json": b"{"}), ["data.labels={a:json.b}"], ["shards/x.tar: '1.json'", "no JSON"]),
    ("a list", lambda: None, ["data.labels={a:json.deep}"], ["train-000.tar: 'some/0000.json'", "json.deep", "not one word"]),
    ("no such source", lambda: None, ["data.labels={a:txt}"], ["data.labels.a", "no sample has a txt"]),
    ("an odd source", lambda: None, ["data.labels={a:cls.x}"], ["data.labels.a", "json.caption", "cls.x"]),
    ("an odd name", lambda: None, ["data.labels={a.b:cls}"], ["a.b"]),
    ("an odd number", lambda: None, ["data.together=0"], ["data.together", "0"]),
    ("other classes", lambda: None, ["data.classes={label:[x]}"], ["cls says", "data.classes.label: x"]),
]


@pytest.mark.parametrize(("break_it", "settings", "said"), [fault[1:] for fault in FAULTS], ids=[fault[0] for fault in FAULTS])
@pytest.mark.usefixtures("unchecked")
def test_faults_are_one_line(break_it: Callable[[], Any], settings: list[str], said: list[str], capsys: pytest.CaptureFixture[str]):
    write(shards=3)
    break_it()
    code = run([*SHARDS, "out=run", "trainer.steps=9", *settings])
    lines = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line.strip() and "train:" not in line]
    assert code == 2 and len(lines) == 1, lines
    assert all(each in lines[0] for each in said) and "Traceback" not in lines[0]


def test_what_is_wrong_in_a_worker_is_said_as_if_it_were_here():
    write()
    change(FIRST, png(3), b"x" * len(png(3)))
    split = Images("shards", 4).train
    with pytest.raises(UserError) as error:
        list(loaded(split, batches(split, 0, 0, 8, 4, 0, 1, 1), workers=1))
    assert "train-000.tar: 'some/0003.png'" in str(error.value) and "Traceback" not in str(error.value)


def test_broken_images_give_their_place_to_the_next(capsys: pytest.CaptureFixture[str]):
    write()
    for k in (3, 9, 24):
        change(Path(f"shards/train-00{k // 10}.tar"), png(k), b"x" * len(png(k)))
    split = Images("shards", 4, held_out="shards", skip_broken=True).train
    images, condition = whole(split)
    taken = [{3: 4, 9: 0, 24: 25}.get(k, k) for k in range(30)]  # after the last of a shard comes its first
    assert np.array_equal(images.numpy(), [pixels(png(k)) for k in taken])
    assert condition.values["label"].tolist() == [k % 3 for k in taken]
    whole(split)
    assert capsys.readouterr().err.count("skipped") == 3, "said once of each"
    add("in/all.tar", {"1.png": b"x", "2.png": b"y"})
    with pytest.raises(UserError, match=r"all\.tar: none of its samples can be read"):
        whole(Images("in", 4, skip_broken=True).train)


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("how", ["gone", "cut", "written"])
def test_a_shard_that_changes_while_it_is_used(opened: bool, how: str):
    write()
    split = Images("shards", 4).train
    if opened:
        whole(split)
    if how == "gone":
        FIRST.unlink()
    elif how == "cut":
        os.truncate(FIRST, 2000)
    else:  # as large as before
        FIRST.write_bytes(FIRST.read_bytes())
        os.utime(FIRST, ns=(0, 10**9))
    if how == "gone" and opened:
        whole(split)  # its file is still there for those who have it open
    else:
        with pytest.raises(UserError, match=r"train-000.tar (has changed|cannot be read|is cut short)"):
            whole(split)
