"""Task embeddings from sentences: a learned projection of a frozen encoder's vectors (docs/language.md).

Shapes: `B` rows, `T` tasks, `D` descriptions per task, `V` numbers of a sentence vector, `E` task embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ezm_pl.world_model.layers import cap_norm

SENTENCE_SIZE = 384
"""`V` of the encoder."""


class DescribedTasks(nn.Module):
    """The embeddings `e = cap(W (v - c) / s)` of tasks whose descriptions have the vectors `v`.

    `W` is learned. `c` is the mean vector of all training descriptions and `s` the root mean square of their
    distances to it, so that what the sentences share does not drown what tells them apart. All but `W` are
    buffers: a checkpoint needs no encoder.

    Args:
        tasks: `T`.
        embedding: `E`.
    """

    training_vectors: Tensor
    training_count: Tensor
    held_out_vectors: Tensor
    held_out_count: Tensor
    centre: Tensor
    scale: Tensor

    def __init__(self, tasks: int, embedding: int) -> None:
        super().__init__()
        # As far apart at first as the rows of an embedding table.
        self.projection = nn.Parameter(torch.randn(embedding, SENTENCE_SIZE) * 0.1)
        for kind in ("training", "held_out"):
            self.register_buffer(f"{kind}_vectors", torch.zeros(tasks, 1, SENTENCE_SIZE))
            self.register_buffer(f"{kind}_count", torch.zeros(tasks, dtype=torch.long))
        self.register_buffer("centre", torch.zeros(SENTENCE_SIZE))
        self.register_buffer("scale", torch.ones(()))

    @torch.no_grad()
    def describe(self, training: Sequence[Tensor], held_out: Sequence[Tensor]) -> None:
        """Takes the tasks' sentence vectors, `[D, V]` for each of the `T` tasks; `D` may differ."""
        every = torch.cat(list(training))
        self.centre.copy_(every.mean(0))
        self.scale.copy_((every - self.centre).square().sum(1).mean().sqrt().clamp(min=1e-6))
        device = self.centre.device
        for kind, vectors in (("training", training), ("held_out", held_out)):
            padded = nn.utils.rnn.pad_sequence(list(vectors), batch_first=True)
            setattr(self, f"{kind}_vectors", padded.to(device))
            setattr(self, f"{kind}_count", torch.tensor([len(each) for each in vectors], device=device))

    def embed(self, vectors: Tensor) -> Tensor:
        """The embeddings `[..., E]` of sentence vectors `[..., V]`, L2 norm at most 1."""
        centred = (vectors - self.centre) / self.scale
        return cap_norm(nn.functional.linear(centred, self.projection))

    def table(self) -> Tensor:
        """The embeddings `[T, E]` of the tasks' first training descriptions, by which agents act."""
        return self.embed(self.training_vectors[:, 0])

    def tables(self, kind: Literal["training", "held-out"]) -> list[Tensor]:
        """The embeddings `[T, E]` of descriptions of a kind: the first of each task, the second, and so on.

        A task with fewer than others repeats its own; where one has none the list is empty.
        """
        training = self.training_vectors, self.training_count
        vectors, count = training if kind == "training" else (self.held_out_vectors, self.held_out_count)
        rows = torch.arange(len(count), device=count.device)
        indices = range(int(count.max()) if int(count.min()) else 0)
        return [self.embed(vectors[rows, index % count]) for index in indices]

    def forward(self, task: Tensor, generator: torch.Generator) -> Tensor:
        """The embeddings `[B, E]` of tasks `[B]`, each by one of its training descriptions, drawn."""
        count = self.training_count[task]
        drawn = torch.rand(len(task), generator=generator, device=task.device) * count
        return self.embed(self.training_vectors[task, drawn.long().minimum(count - 1)])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, buffer in self._buffers.items():  # as many descriptions as were saved
            if buffer is not None and isinstance(saved := state_dict.get(prefix + name), Tensor):
                self._buffers[name] = torch.empty_like(saved, device=buffer.device)
        super()._load_from_state_dict(state_dict, prefix, *args)
