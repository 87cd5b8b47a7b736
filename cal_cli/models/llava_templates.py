"""LLaVA's conversation templates, as chat templates that mark the assistant's text.

`v1` (fine-tuning): the system sentence, then `USER: ... ASSISTANT: ...</s>`; a single image comes first in its turn,
several keep their places. `plain` (pre-training of the projector): the image and its caption only. `gemma`: Gemma's own
turns, as MGM-2B uses them in both stages. Formats: LLaVA's
`llava/conversation.py` and `preprocess_multimodal`, `preprocess_v1`, `preprocess_plain` of its `llava/train/train.py`;
several images as in LLaVA-NeXT's.
"""

from pathlib import Path
from typing import Any

from cal_cli.runtime.errors import InputError

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
# sets `text` (a message's words without its images), `images` (their number) and `placed` (the words with them)
READ_MESSAGE = """\
{%- set found = namespace(text="", placed="", images=0, behind=false) -%}
{%- if message.content is string -%}{%- set found.text = message.content -%}{%- else -%}
  {%- for part in message.content -%}
    {%- if part.type == "image" -%}
      {%- set found.images = found.images + 1 -%}{%- set found.placed = found.placed + "<image>" -%}
      {%- set found.behind = true -%}
    {%- else -%}
      {%- set space = "<space>" if found.behind else "" -%}
      {%- set found.text = found.text + part.text -%}{%- set found.placed = found.placed + space + part.text -%}
      {%- set found.behind = false -%}
    {%- endif -%}
  {%- endfor -%}
{%- endif -%}
"""
V1 = (
    """\
{{- bos_token -}}
{{- "<space>" + ("" if messages[0].role == "system" else "<system> ") -}}
{%- for message in messages -%}
"""
    + READ_MESSAGE
    + """\
  {%- if message.role == "user" -%}
    {%- set one = "<image>" + ("<space>\\n" + found.text | trim if found.text | trim else "<space>") -%}
    {%- set several = found.placed + ("<space>" if found.behind else "") -%}
    {{- "USER: " + (several if found.images > 1 else one if found.images else found.text) + " " -}}
  {%- elif message.role == "assistant" -%}
    {{- "ASSISTANT:" -}}{%- generation -%}{{- " " + found.text + eos_token -}}{%- endgeneration -%}
  {%- else -%}{{- found.text + " " -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "ASSISTANT:" -}}{%- endif -%}
"""
)
PLAIN = (
    """\
{{- bos_token -}}
{%- set shown = namespace(images=0) -%}
{%- for message in messages -%}
"""
    + READ_MESSAGE
    + """\
  {%- if message.role == "user" -%}
    {{- "<image>" * found.images -}}{%- set shown.images = found.images -%}
  {%- elif message.role == "assistant" -%}
    {%- generation -%}{{- ("<space>" if shown.images else "") + found.text + "\\n" -}}{%- endgeneration -%}
  {%- endif -%}
{%- endfor -%}
"""
)
GEMMA = (
    """\
{{- bos_token -}}
{%- for message in messages -%}
"""
    + READ_MESSAGE
    + """\
  {%- if message.role == "user" -%}
    {%- set one = "<image>\n" + found.text | trim -%}
    {{- "<start_of_turn>user\n" + (found.placed if found.images > 1 else one if found.images else found.text) -}}
    {{- "<end_of_turn>\n" -}}
  {%- elif message.role == "assistant" -%}
    {{- "<start_of_turn>model\n" -}}
    {%- generation -%}
      {{- found.text + "<end_of_turn>\n" + (eos_token if loop.last else "") -}}
    {%- endgeneration -%}
  {%- else -%}{{- raise_exception("Gemma's template has no system turn") -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<start_of_turn>model\n" -}}{%- endif -%}
"""
)
TEMPLATES = {"v1": V1, "plain": PLAIN, "gemma": GEMMA}


def make_chat_template(name: str, tokenizer: Any, image_token: str = "<image>") -> str:
    """Make the template for one tokenizer.

    LLaVA cuts a text at its images and tokenizes the pieces, so with Llama's tokenizer the first word and those after
    an image begin with the space that this tokenizer adds before any text. If the tokenizer does not add that space
    after a special token, the template writes it.

    `name` is `v1`, `plain`, `gemma`, or a file that ends in `.jinja`, which is used unchanged. The tokenizer must know
    `image_token` as one token.

    Raises InputError for another name, no such file, or a tokenizer without an end token.
    """
    if name.endswith(".jinja"):
        if not Path(name).is_file():
            raise InputError(f"model.template={name}: there is no such file")
        return Path(name).read_text(encoding="utf-8")
    if name not in TEMPLATES:
        raise InputError(
            f"model.template={name}: allowed are {', '.join(TEMPLATES)}, a .jinja file, or null for the model's own"
        )
    if tokenizer.eos_token is None:
        raise InputError(f"model.template={name}: the tokenizer has no end token to close each answer")
    text = TEMPLATES[name].replace("<system>", SYSTEM)
    text = text.replace("<space>", "" if tokenizer.tokenize(f"{image_token}a")[1:] == tokenizer.tokenize("a") else " ")
    text = text.replace("<image>", image_token)
    return text if tokenizer.bos_token else text.replace("{{- bos_token -}}\n", "")
