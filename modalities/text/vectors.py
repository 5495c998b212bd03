"""Vectors of tokens: where a table of them comes from."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from guidance.errors import UserError
from guidance.modality import Split

NEAR, SHARE = 2, 0.5
DENSE = 2000  # tokens up to which all singular vectors are computed, rather than the largest


def unit(vectors: Float[Tensor, "n width"]) -> Float[Tensor, "n width"]:
    """Of norm sqrt(width): on average of unit variance."""
    return functional.normalize(vectors, dim=1) * math.sqrt(vectors.shape[1])


def cooccurrence(split: Split, size: int, width: int, noise: Float[Tensor, "size width"]) -> Float[Tensor, "size width"]:
    """Vectors of tokens from their neighbours in the training data: the largest singular vectors, times the roots of the values, of the
    positive pointwise mutual information of each token with those one and two places to its left and right (Levy & Goldberg 2014).

    Random vectors are added, by SHARE, so that tokens with the same neighbours remain apart.
    """
    information = mutual_information(split, size)
    if size <= max(DENSE, width + 1):
        u, s, _ = np.linalg.svd(information.toarray(), full_matrices=False)
    else:
        from scipy.sparse.linalg import svds

        u, s, _ = svds(information, k=width, v0=np.ones(size), random_state=0)
        u, s = u[:, ::-1], s[::-1]
    there = information.getnnz(1)[:, None] > 0  # of other tokens u holds what rounding leaves of nothing
    found = torch.from_numpy((u[:, :width] * np.sqrt(s[:width]) * there).astype(np.float32))
    return padded(functional.normalize(found, dim=1), width) + SHARE * functional.normalize(noise, dim=1)


def mutual_information(split: Split, size: int) -> Any:
    """A sparse matrix: max(0, log p(token, neighbour) / p(token) p(neighbour)), a block of columns a place."""
    from scipy.sparse import coo_matrix

    tokens, neighbours = [], []
    for first in range(0, len(split), 512):
        ids = split.__getitems__(list(range(first, min(first + 512, len(split)))))[0].numpy()
        for k in range(1, NEAR + 1):
            left, right = ids[:, :-k].ravel(), ids[:, k:].ravel()
            tokens += [left, right]
            neighbours += [right + (2 * k - 2) * size, left + (2 * k - 1) * size]
    pairs = np.concatenate(tokens), np.concatenate(neighbours)
    joint = coo_matrix((np.ones(len(pairs[0])), pairs), shape=(size, 2 * NEAR * size)).tocsr().tocoo()
    rows, columns = (np.asarray(joint.sum(axis)).ravel() for axis in (1, 0))
    found = np.log(joint.data * joint.sum() / (rows[joint.row] * columns[joint.col])).clip(min=0)
    information = coo_matrix((found, (joint.row, joint.col)), shape=joint.shape).tocsr()
    information.eliminate_zeros()
    return information


def padded(vectors: Float[Tensor, "n any"], width: int) -> Float[Tensor, "n width"]:
    """With zeros, where a small vocabulary has fewer directions than that."""
    return functional.pad(vectors, (0, width - vectors.shape[1]))


def reduced(table: Float[Tensor, "n any"], size: int, width: int) -> Float[Tensor, "n width"]:
    """The table's first principal components."""
    if table.ndim != 2 or len(table) != size or table.shape[1] < width:
        raise UserError(
            f"modality.codec.table has the shape {list(table.shape)}; "
            f"the vocabulary needs {size} rows, modality.codec.width at least {width} columns"
        )
    if not bool(table.isfinite().all()):
        raise UserError("modality.codec.table holds numbers that are not finite")
    centred = table - table.mean(0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    return padded(centred @ directions[:width].T, width)


def read_table(path: str) -> Float[Tensor, "n any"]:
    """The matrix in a .npy file, or the only one in a .safetensors file."""
    file = Path(path).expanduser()
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            tensors = load_file(file)
            if len(tensors) != 1:
                raise UserError(f"modality.codec.table={path} holds {len(tensors)} tensors, and should hold one")
            return next(iter(tensors.values())).float()
        return torch.from_numpy(np.load(file, allow_pickle=False)).float()
    except UserError:
        raise
    except Exception as error:  # of numpy, safetensors, or the file system
        raise UserError(f"modality.codec.table={path} cannot be read: {' '.join(str(error).split())[:120]}") from None
