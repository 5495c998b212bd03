"""Large vocabularies take the largest singular vectors only: they are those of the whole decomposition."""

import torch

from guidance.condition import Condition
from modalities.text import vectors


class Rows:
    """Sentences in which each token is mostly followed by its double, or its double and one."""

    def __init__(self, n: int, length: int, size: int):
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(size, (n, 1), generator=generator)
        for _ in range(length - 1):
            ids = torch.cat([ids, (2 * ids[:, -1:] + torch.randint(2, (n, 1), generator=generator)) % size], 1)
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitems__(self, index: list[int]) -> tuple[torch.Tensor, Condition]:
        return self.ids[index], Condition()


def test_the_largest_singular_vectors_are_those_of_the_whole_decomposition(monkeypatch):
    split, size, width = Rows(600, 8, 60), 60, 5
    whole = vectors.cooccurrence(split, size, width, torch.zeros(size, width))
    monkeypatch.setattr(vectors, "DENSE", 0)
    some = vectors.cooccurrence(split, size, width, torch.zeros(size, width))
    torch.testing.assert_close(some @ some.T, whole @ whole.T, atol=1e-4, rtol=1e-4)
    assert torch.equal(some, vectors.cooccurrence(split, size, width, torch.zeros(size, width))), "the same every time"
