"""Every row of docs/scaling.md, and the header of every recipe in it, against `polyguide cost`: a minute or two.

python tests/faults/scaling_rows.py prints the rows that differ; with --write they, and the figures of the headers, are written.
"""

import argparse
import json
import re
import sys
from pathlib import Path

from guidance.commands import costing
from guidance.config import config_folder
from guidance.cost import Cost
from guidance.cost_table import digits, row, short
from guidance.hydra import composed

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"
RECIPES = config_folder() / "recipe" / "published"


def counted(recipe: str) -> Cost:
    config = costing.with_facts(composed("cost", [f"recipe=published/{recipe}"]), costing.shipped(f"published/{recipe}"))
    return costing.found(config, f"published/{recipe}")


def header(text: str, cost: Cost) -> str:
    """A recipe's text with the figures of its header as they are now."""
    t, total = cost.training, short(cost.memory["total"], "B")
    text = re.sub(r"# \S+ \w parameters", f"# {short(cost.parameters['total'])} parameters", text, count=1)
    spent = f"{short(t['flops'], 'FLOP')} in {t['steps']:,} steps of {t['batch_size']}: {digits(t['days'])} days"
    text = re.sub(r"[\d.]+ \wFLOP in [\d,]+ steps of \d+: [\d.]+ days", spent, text, count=1)
    return re.sub(r"# [\d.]+ \wB of memory with \d+ samples", f"# {total} of memory with {cost.micro_batch} samples", text, count=1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", nargs="*", help="all by default")
    parser.add_argument("--write", action="store_true", help="write what differs")
    options = parser.parse_args()
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    differ = []
    recipes = options.recipes or sorted(path.stem for path in RECIPES.glob("*.yaml"))
    for recipe in recipes:
        cost, path = counted(recipe), RECIPES / f"{recipe}.yaml"
        old = path.read_text(encoding="utf-8")
        if row(cost) not in lines or header(old, cost) != old:
            differ.append(row(cost))
        if options.write:
            lines = [row(cost) if line.startswith(f"| `published/{recipe}` |") else line for line in lines]
            path.write_text(header(old, cost), encoding="utf-8")
    if options.write:
        PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(*differ, sep="\n", end="\n" if differ else "")
    print(json.dumps({"rows": len(recipes), "differ": len(differ)}))
    return bool(differ) and not options.write


if __name__ == "__main__":
    sys.exit(main())
