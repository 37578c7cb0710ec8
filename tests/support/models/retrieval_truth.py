"""Steps of embedding models and rerankers in plain transformers, which runs of the trainer are compared with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.models.classification_truth import ADAM, GLOBAL, RATE, STEPS, TEXTS

TEMPERATURE = 0.1
JUDGE = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"


def text(number: int) -> str:
    return f"{TEXTS[number % len(TEXTS)]} {number}"


def triplets() -> list[dict[str, Any]]:
    """Anchors with a positive and two negatives."""
    count = STEPS * GLOBAL
    return [
        {
            "anchor": text(number),
            "positive": text(number + 3),
            "negative": [text(number + 7), text(number + 11)],
            "label": round((number % 5) / 4, 2),
        }
        for number in range(count)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def ids(tokenizer: Any, turns: list[dict[str, str]]) -> Any:
    """[1, T]: a question as it is opened for an answer, an answered one whole."""
    import torch

    is_asked = turns[-1]["role"] == "user"
    shown = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=is_asked)
    return torch.tensor([tokenizer(shown, add_special_tokens=False)["input_ids"]])


def user(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


def answered(query: str, document: str) -> list[dict[str, str]]:
    return [*user(query), {"role": "assistant", "content": document}]


def judged(query: str, document: str) -> list[dict[str, str]]:
    asked = f"<Instruct>: {INSTRUCTION}\n<Query>: {query}\n<Document>: {document}"
    return [{"role": "system", "content": JUDGE}, *user(asked)]


def embeddings(model: Any, tokenizer: Any, row: dict[str, Any], size: int | None = None) -> Any:
    """[texts, numbers] of anchor, positive, negatives, normalized; size: how much of them is kept."""
    import torch

    texts = [row["anchor"], row["positive"], *row["negative"]]
    states = [model(ids(tokenizer, user(one))).last_hidden_state[0, -1][:size] for one in texts]
    return torch.stack([state / state.norm() for state in states])


def infonce(rows: list[Any]) -> Any:
    """Of the embeddings of each row: the mean over the anchors of -log of the positive's share of all documents."""
    import torch

    documents = torch.cat([row[1:] for row in rows])
    losses = []
    for row in rows:
        similar = torch.exp(documents @ row[0] / TEMPERATURE)
        losses.append(-torch.log(torch.exp(row[1] @ row[0] / TEMPERATURE) / similar.sum()))
    return torch.stack(losses).mean()


def train(model: Any, loss_of: Any) -> list[float]:
    """The loss of each step by `loss_of(rows)`; the model is trained as the trainer trains it."""
    import torch

    betas = (ADAM["adam_beta1"], ADAM["adam_beta2"])
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=betas, eps=ADAM["adam_eps"], weight_decay=0.0)
    losses, rows = [], triplets()
    for step in range(STEPS):
        loss = loss_of(rows[step * GLOBAL : (step + 1) * GLOBAL])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def score(model: Any, tokenizer: Any, query: str, document: str) -> Any:
    """Of a classifier with one score."""
    return model(ids(tokenizer, answered(query, document))).logits[0, 0]


def answer(model: Any, tokenizer: Any, query: str, document: str, tokens: tuple[int, int]) -> Any:
    """By how much the first token is likelier than the second, as a logit."""
    logits = model(ids(tokenizer, judged(query, document))).logits[0, -1]
    return logits[tokens[0]] - logits[tokens[1]]
