"""A run whose files are cut, flipped, zeroed, shortened or lengthened, one at a time: what `sample` and `train resume=true` make of it.

    python tests/faults/checkpoint_bytes.py --cases 200

Each ends with status 2 and one line on stderr, and leaves everything as it was; or it did not need the damaged part, and gives the very
samples, the very weights of the run that is whole.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from fuzz_tools import Answer, command

LINES = "\n".join(f"the {colour} {kind} sleeps" for colour in ("red", "green") for kind in ("cat", "dog") for _ in range(6))
ENCODER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
READ = ("config.yaml", "checksums.json", "words.json", "moments.safetensors", "average.safetensors", "state.json")
NEEDED = {"sample": READ, "resume": (*READ, "model.safetensors", "optimizer.safetensors")}
FREE = ("checksums.json", "state.json")  # in which a change of white space changes nothing


IMAGES = ["data=digits", "network.channels=4", "network.multipliers=[1]", "network.blocks=1"]
TRAINER = ["trainer.batch_size=4", "trainer.steps=4", "trainer.save_every=2", "trainer.log_every=1", "trainer.decay=constant"]
NO_JUDGE = {"text": ["judge=false"], "image": []}
ASKED = {"text": "condition.colour=red", "image": "condition.digit=3"}


def trained(place: Path, kind: str = "text") -> Path:
    """A run with two checkpoints: of text, with a vocabulary, or of images, with moments."""
    (place / "lines.csv").write_text("line,colour\n" + "".join(f"{line},{line.split()[1]}\n" for line in LINES.splitlines()))
    network = [*(f"network.encoder.{name}={value}" for name, value in ENCODER.items()), "network.encoder.layer_types=[full_attention]"]
    data = ["data=text_file", f"data.path={place / 'lines.csv'}", "data.text=line", "data.attributes=[colour]", "data.length=8"]
    more = ["tokenizer=words", "modality.codec.width=8", "modality.codec.kind=random", "trainer.precision='no'"]
    made = IMAGES if kind == "image" else ["modality=text", *network, *data, *more]
    answer = command("train", *made, *TRAINER, "threads=1", f"out={place / 'run'}")
    assert answer.code == 0, answer
    return place / "run"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


Wanted = dict[str, dict[str, bytes]]  # files that a command makes of the run that is whole
Damage = Callable[[bytes, random.Random], bytes]


def cut(content: bytes, at: random.Random) -> bytes:
    return content[: at.randrange(len(content))]


def flipped(content: bytes, at: random.Random) -> bytes:
    k = at.randrange(len(content))
    return content[:k] + bytes([content[k] ^ (1 << at.randrange(8))]) + content[k + 1 :]


def replaced(content: bytes, at: random.Random) -> bytes:
    k = at.randrange(len(content))
    width = min(at.randint(1, 64), len(content) - k)
    return content[:k] + at.randbytes(width) + content[k + width :]


def zeroed(content: bytes, at: random.Random) -> bytes:
    k = at.randrange(len(content))
    width = min(at.randint(1, 512), len(content) - k)
    return content[:k] + bytes(width) + content[k + width :]


def shortened(content: bytes, at: random.Random) -> bytes:
    k = at.randrange(len(content))
    return content[:k] + content[k + at.randint(1, 64) :]


def lengthened(content: bytes, at: random.Random) -> bytes:
    k = at.randrange(len(content))
    return content[:k] + at.randbytes(at.randint(1, 64)) + content[k:]


def begun(content: bytes, at: random.Random) -> bytes:
    """A flip within the first bytes: a header."""
    k = at.randrange(min(len(content), 200))
    return content[:k] + bytes([content[k] ^ (1 << at.randrange(8))]) + content[k + 1 :]


DAMAGES: tuple[Damage, ...] = (cut, flipped, replaced, zeroed, shortened, lengthened, begun)


def cases(run: Path, n: int, seed: int = 0) -> Iterator[tuple[str, str, bytes]]:
    """n files of the run in turn, each with what is done to it and the bytes that come of it."""
    at, whole = random.Random(seed), files(run)
    names = sorted(name for name in whole if not name.endswith(".png") and not name.startswith("forward"))
    for k in range(n):
        name = names[k % len(names)]
        damage = DAMAGES[(k // len(names) + k) % len(DAMAGES)]
        content = damage(whole[name], at)
        while content == whole[name]:
            content = damage(whole[name], at)
        yield name, damage.__name__, content


def must_refuse(what: str, name: str, newest: str, content: bytes, before: bytes) -> bool:
    """Whether a command has to see that a file is damaged: those of the newest checkpoint and of the run itself that it reads."""
    path = Path(name)
    if path.name not in NEEDED[what] or (path.parent.name.startswith("step-") and path.parent.name != newest):
        return False
    if path.name in FREE:
        try:
            return bool(json.loads(content) != json.loads(before)) and path.name != "checksums.json"
        except (ValueError, RecursionError):
            return True
    return True


def check(
    kind: str, run: Path, copy: Path, name: str, content: bytes, wanted: dict[str, dict[str, bytes]]
) -> tuple[Counter[str], list[str]]:
    """What the commands make of a copy of the run with one file damaged: counts, and what they should not have done."""
    counts: Counter[str] = Counter()
    wrong = []
    newest = max(path.name for path in (run / "checkpoints").iterdir())
    for what in ("sample", "resume"):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(run, copy)
        (copy / name).write_bytes(content)
        before, out = files(copy), copy.with_name("out")
        shutil.rmtree(out, ignore_errors=True)
        answer = asked(kind, what, copy, out)
        refused = answer.code == 2
        counts[f"{what}: {'refused' if refused else 'the same as undamaged'}"] += 1
        if problem := answer.wrong():
            wrong.append(f"{what}: {problem}")
        elif refused and (files(copy) != before or out.exists()):
            wrong.append(f"{what}: refused, and something was written")
        elif refused and Path(name).name not in answer.said and "checksums.json" not in name:
            wrong.append(f"{what}: refused without the file's name: {answer.said}")
        elif not refused and result(what, copy, out) != wanted[what]:
            wrong.append(f"{what}: something else came of it")
        elif not refused and must_refuse(what, name, newest, content, (run / name).read_bytes()):
            wrong.append(f"{what}: not refused")
    return counts, wrong


def asked(kind: str, what: str, run: Path, out: Path) -> Answer:
    if what == "sample":
        return command("sample", f"run={run}", f"out={out}", "n=2", "sampler.steps=2", ASKED[kind], *NO_JUDGE[kind], "threads=1")
    return command("train", f"out={run}", "resume=true", "trainer.steps=6", "threads=1")


def result(what: str, run: Path, out: Path) -> dict[str, bytes]:
    if what == "sample":
        return {name: content for name, content in files(out).items() if name.startswith("grid")}
    return files(run / "checkpoints" / "step-00000006")


def undamaged(kind: str, run: Path, place: Path) -> Wanted:
    found = {}
    for what in ("sample", "resume"):
        shutil.copytree(run, place / "copy")
        answer = asked(kind, what, place / "copy", place / "out")
        assert answer.code == 0, answer
        found[what] = result(what, place / "copy", place / "out")
        shutil.rmtree(place / "copy")
    assert all(found.values())
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    counts: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    wrong = []
    for kind in ("text", "image"):
        with tempfile.TemporaryDirectory() as temporary:
            place = Path(temporary)
            run = trained(place, kind)
            wanted = undamaged(kind, run, place)
            for name, damage, content in cases(run, given.cases // 2, given.seed):
                found, problems = check(kind, run, place / "copy", name, content, wanted)
                counts += found
                kinds[Path(name).name] += 1
                wrong += [f"{kind}, {name}, {damage}: {problem}" for problem in problems]
    print(json.dumps({"cases": given.cases, "files": kinds, "answers": counts, "wrong": wrong}, indent=1))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
