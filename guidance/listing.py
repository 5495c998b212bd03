"""polyguide list: what can be chosen, and where each thing is."""

from pathlib import Path

from guidance.cli import COMMANDS
from guidance.config import config_folder
from guidance.plugins import all_commands, command_problems, everything, plugins, problems


def _first_comment(path: Path) -> str:
    """The first line that says something; `@package` is for Hydra."""
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = [line.lstrip("# ").strip() for line in text.splitlines()[:2] if line.startswith("#")]
    return next((line for line in lines if not line.startswith("@package")), "")


def listing() -> str:
    """Modalities and further commands with their distributions, and what is wrong with them; then every config group, with the first
    comment of each choice and its file."""
    own = config_folder()
    lines = ["modalities"]
    for plugin in everything():
        if not plugin.modality and "further packages" not in lines:
            lines += ["", "further packages"]
        place = plugin.folder or "its files cannot be found"
        lines.append(f"  {plugin.name:16} {plugin.target}  ({plugin.distribution} {plugin.version}, {place})")
        lines += [f"  {'':16} problem: {problem}" for problem in problems(plugin, own)]
    if not plugins():
        lines.append("  none is installed: pip install polyguide, or pip install -e . in a checkout")
    lines += ["", "further commands"] if all_commands() else []
    for command in all_commands():
        lines.append(f"  {command.name:16} {command.target}  ({command.distribution})")
        lines += [f"  {'':16} problem: {problem}" for problem in command_problems(command, COMMANDS)]
    folders = [own, *(p.configs for p in everything() if p.configs)]
    groups = sorted({path.parent.relative_to(folder) for folder in folders for path in folder.glob("*/**/*.yaml")})
    for group in groups:
        lines += ["", f"{group}="]
        for folder in dict.fromkeys(f.resolve() for f in folders):
            for path in sorted((folder / group).glob("*.yaml")):
                lines.append(f"  {path.stem:16} {_first_comment(path)}")
                lines.append(f"  {'':16} {path}")
    return "\n".join(lines) + "\n"
