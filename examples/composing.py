"""Conditions mixed with weights of either sign: which of nine places do samples go to?

    python examples/composing.py

Nine Gaussians on a grid, whose columns and rows are two attributes. The denoiser is exact, so what is seen is the algebra's doing
alone. The two attributes are independent in the data, and then p(x|column) p(x|row) / p(x) is the joint condition: asking for both with
weight 1 gives the one place that is in both.
"""

from itertools import product

import torch

from guidance import CFG, Condition, DPMSolver, Guidance, Mixture, on, sample

MEANS = torch.tensor(list(product((-2.0, 0.0, 2.0), repeat=2)))  # column, row
DENOISER = Mixture(MEANS, stds=0.3, labels={"column": [k // 3 for k in range(9)], "row": [k % 3 for k in range(9)]}).denoiser()

ASKED: dict[str, Guidance] = {
    "nothing": CFG(0.0),
    "right and top": 1.0 * on(column=2) + 1.0 * on(row=2),
    "right and top, jointly": 1.0 * on(column=2, row=2),
    "right, not top": 1.0 * on(column=2) - 1.0 * on(row=2),
    "neither right nor top": -1.0 * on(column=2) - 1.0 * on(row=2),
    "right more than top": 2.0 * on(column=2) + 0.5 * on(row=2),
}


def main(n: int = 2000) -> dict[str, list[float]]:
    """The share of samples at each place, for every guidance."""
    condition, shares = Condition.of(column=torch.zeros(n, dtype=torch.long), row=torch.zeros(n, dtype=torch.long)), {}
    for name, guidance in ASKED.items():
        x = sample(DENOISER, (n, 2), condition, guidance, DPMSolver(), steps=50)
        shares[name] = (torch.cdist(x, MEANS).argmin(1).bincount(minlength=9) / n).tolist()
        print(f"\n{name}")
        for row in (2, 1, 0):
            print("   " + "  ".join(f"{shares[name][3 * column + row]:.2f}" for column in range(3)))
    return shares


if __name__ == "__main__":
    main()
