"""polyguide: the command line. Nothing heavy is imported before a command needs it."""

import errno
import os
import sys
import warnings
from collections.abc import Sequence
from typing import TextIO

from guidance.machine import wait_briefly

COMMANDS = {
    "demo": "train three models, measure their guidance, put it on one page: polyguide demo",
    "train": "train a model from a config: polyguide train data=digits out=runs/digits",
    "train-classifier": "train a classifier of noisy data, for guidance: polyguide train-classifier run=runs/digits out=classifier",
    "cost": "what a training would cost, in memory and days: polyguide cost recipe=published/cifar10",
    "sample": "draw guided samples: polyguide sample run=runs/digits n=16 condition.digit=3 guidance.scale=4 out=samples",
    "evaluate": "measure a model over a range of scales: polyguide evaluate run=runs/digits",
    "experiment": "measure a question over many cells: polyguide experiment run=runs/digits experiment=inverse",
    "compare": "put evaluations side by side: polyguide compare runs/digits/cfg runs/digits/interval",
    "exactness": "hold guidance against exact answers, on mixtures: polyguide exactness out=exactness",
    "report": "put experiments of several runs on one page: polyguide report RUN... out=report",
    "new-modality": "start a plug-in, a package that trains at once: polyguide new-modality NAME",
    "doctor": "what this machine and this installation are, for a bug report: polyguide doctor",
    "list": "what can be chosen: modalities, data sets, networks, samplers, guidance, and where each is",
}

USAGE = """polyguide: one guided diffusion sampler for every modality.

usage: polyguide COMMAND [key=value ...]

{commands}

Settings are Hydra overrides. `polyguide COMMAND --help` lists them with their defaults; --multirun sweeps over them.
"""


def usage() -> str:
    from guidance.plugins import commands

    known = COMMANDS | {name: "brought by a plug-in" for name in commands() if name not in COMMANDS}
    return USAGE.format(commands="\n".join(f"  {name:15} {what}" for name, what in known.items()))


def _one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None, line: str | None = None
) -> None:
    """Our own warnings are said in a line; what other libraries warn of among themselves is not for this command's user."""
    if category is UserWarning:
        print(f"polyguide: {' '.join(str(message).split())}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit: 0 when done, 2 for what the user can mend (said in one line), 130 after Ctrl-C."""
    wait_briefly(os.environ)
    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))


def run(arguments: list[str]) -> int:
    warnings.showwarning = _one_line
    from guidance.errors import UserError, one_of

    try:
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            print(usage(), flush=True)
            return 0
        if arguments[0] == "--version":
            from importlib.metadata import version

            print(version("polyguide"))
            return 0
        command, *rest = arguments
        if command not in COMMANDS:
            from guidance.plugins import commands

            more = commands()
            if command not in more:
                raise one_of("command", command, [*COMMANDS, *more])
            more[command].load()(rest)
            return 0
        if command == "list" and rest:
            raise UserError(f"list takes no settings, got {' '.join(rest)}")
        if command == "list":
            from guidance.listing import listing

            print(listing(), end="", flush=True)
            return 0
        if command == "report":
            from guidance.experiment.report import command as report

            report(rest)
            return 0
        if command == "doctor":
            from guidance.commands.doctor import command as doctor

            doctor(rest)
            return 0
        if command == "compare":
            from guidance.compare import command as compare

            compare(rest)
            return 0
        if command == "new-modality":
            from guidance.scaffold import command as new_modality

            new_modality(rest)
            return 0
        from guidance.hydra import launch

        launch(command, rest)
    except UserError as error:
        say(str(error))
        return 2
    except KeyboardInterrupt:
        print("polyguide: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            what = "the disk is full" if error.errno != errno.EFBIG else "the file size limit is reached"
            say(f"{what}{_at(error)}; what was complete before is kept, so free some space and go on")
            return 2
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EIO):
            say(f"{error.strerror}{_at(error)}")
            return 2
        raise
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        training = arguments[0].startswith("train")
        hint = "trainer.batch_size, or a larger trainer.accumulate" if training else "batch_size, or max_rows"
        say(f"out of memory; try a smaller {hint} ({str(error)[:200]})")
        return 2
    return 0


def say(message: str) -> None:
    """An error in one line, whatever was typed; what is very long is cut in its middle."""
    line = " ".join(message.split())
    print(f"polyguide: {line if len(line) <= 1000 else f'{line[:700]} ... {line[-200:]}'}", file=sys.stderr)


def out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, a GPU's or the machine's: torch says the latter with a plain RuntimeError."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def _at(error: OSError) -> str:
    return f" at {error.filename}" if error.filename else ""


if __name__ == "__main__":
    main()
