"""Small tokenizers and chat templates for tests of data: trained here, in the style of real model families."""

from __future__ import annotations

from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

SENTENCES = (
    "The quick brown fox jumps over the lazy dog near the river bank.",
    "Please add the numbers 12 and 30, then tell me what the answer is.",
    "You are a helpful assistant. Think first, then answer in one sentence!",
    'Call the function {"name": "get_weather", "arguments": {"city": "Paris"}} now.',
    "Wie spät ist es? 今天天气很好。 Ça va très bien, merci.",
)

CHATML_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA_SPECIAL = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>")

SMOL = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
{{ '<|im_start|>system\\nYou are a test assistant<|im_end|>\\n' }}{% endif %}\
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

THINKING = """{%- if tools %}{{- '<|im_start|>system\\n' }}\
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}\
{{- '# Tools\\n<tools>' }}{%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}\
{{- '\\n</tools><|im_end|>\\n' }}\
{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}\
{%- endif %}
{%- set seen = namespace(last=-1) %}
{%- for message in messages %}{%- if message.role == 'user' %}{%- set seen.last = loop.index0 %}{%- endif %}\
{%- endfor %}
{%- for message in messages %}
{%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}\
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- elif message.role == 'assistant' %}
{%- set thought = '' %}{%- set answer = message.content %}
{%- if message.reasoning_content is string %}{%- set thought = message.reasoning_content %}
{%- elif '</think>' in answer %}
{%- set thought = answer.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
{%- set answer = answer.split('</think>')[-1].lstrip('\\n') %}{%- endif %}
{%- if loop.index0 > seen.last and (loop.last or thought) %}\
{{- '<|im_start|>assistant\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + answer.lstrip('\\n') }}
{%- else %}{{- '<|im_start|>assistant\\n' + answer }}{%- endif %}
{%- for call in message.tool_calls or [] %}{%- if loop.index0 > 0 or answer %}{{- '\\n' }}{%- endif %}\
{{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' + (call.function.arguments | tojson) + \
'}\\n</tool_call>' }}{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- elif message.role == 'tool' %}\
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}\
{{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}\
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

LLAMA3 = """{{- bos_token }}{%- for message in messages %}\
{%- if message.role == 'assistant' and message.tool_calls %}
{%- if message.tool_calls | length != 1 %}{{- raise_exception('one tool call at a time') }}{%- endif %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\
{{- '{"name": "' + message.tool_calls[0].function.name + '", "parameters": ' }}\
{{- message.tool_calls[0].function.arguments | tojson }}{{- '}<|eom_id|>' }}
{%- elif message.role == 'tool' %}\
{{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + message.content + '<|eot_id|>' }}
{%- else %}{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}\
{{- message.content | trim }}{{- '<|eot_id|>' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""

INST = """{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}\
{{ '[INST] ' + message.content + ' [/INST]' }}{% elif message.role == 'assistant' %}\
{{ ' ' + message.content | trim + eos_token }}\
{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"""


@cache
def trained_tokenizer(special: tuple[str, ...]) -> Tokenizer:
    """Byte-level BPE of 500 tokens with these special ones."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=list(special), initial_alphabet=alphabet)
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    return tokenizer


def chatml_tokenizer(template: str | None = SMOL) -> PreTrainedTokenizerBase:
    """Byte-level BPE with ChatML's special tokens; end of text is EOS and padding."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained_tokenizer(CHATML_SPECIAL),
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    tokenizer.chat_template = template
    return tokenizer


def llama_tokenizer(template: str | None = LLAMA3) -> PreTrainedTokenizerBase:
    """Byte-level BPE with llama3's special tokens."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained_tokenizer(LLAMA_SPECIAL),
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|eot_id|>",
        additional_special_tokens=list(LLAMA_SPECIAL[1:3]) + ["<|eom_id|>"],
    )
    tokenizer.chat_template = template
    return tokenizer
