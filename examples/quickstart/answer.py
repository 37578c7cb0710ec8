"""One question to a chat model and its most likely answer; shared by the scripts of the quickstart."""

from __future__ import annotations

from transformers import PreTrainedModel, PreTrainedTokenizerBase


def ask(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, question: str, max_new_tokens: int = 48) -> str:
    """The greedy answer, without special tokens and outer white space."""
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    generated = model.generate(**prompt, max_new_tokens=max_new_tokens, do_sample=False)
    answer = generated[0, prompt["input_ids"].shape[1] :]
    return str(tokenizer.decode(answer, skip_special_tokens=True)).strip()
