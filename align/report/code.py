"""Code that loads an artifact, in Align and without it; exactly what `align show` prints and a model card holds. No
torch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress

from align.folders.config import CONFIG, is_encoder_decoder, is_multimodal, read_json
from align.ground.errors import AlignError
from align.store import Artifact, BaseRecord, Store

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
QUANTISATION = {
    "nf4": 'load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True',
    "fp4": 'load_in_4bit=True, bnb_4bit_quant_type="fp4"',
    "int8": "load_in_8bit=True",
}
LANGUAGE, MULTIMODAL, TWO_PARTS = "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForSeq2SeqLM"
WHOLE, ON_A_BASE = ("model", "classifier"), ("adapter", "reward")
"""Kinds of artifact that hold a model."""
DIALOGUE = '[{"role": "user", "content": "Hello!"}'
CLASSIFY = (
    "",
    f'dialogue = {DIALOGUE}, {{"role": "assistant", "content": "Hi."}}]',
    "text = tokenizer.apply_chat_template(dialogue, tokenize=False).rstrip()  # up to the answer's end-of-turn token",
    'inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")',
    "print(model(**inputs).logits[0, 0])",
)


def load_lines(store: Store, artifact: Artifact, name: str, folder: str | None = None) -> list[str]:
    """How to use an artifact: in Align, and without it once it is checked out into a folder with the layout that it has
    in the store; `folder` has it already."""
    checkouts = [] if folder else [f"  align checkout {name} DIR"]
    if not loadable(artifact):
        return ["Its files in a folder:", *checkouts] if checkouts else []
    folder = folder or "DIR"
    base = artifact.base if artifact.kind in ON_A_BASE else None
    if base and (found := artifact_of(base)):
        checkouts.append(f"  align checkout {found[:12]} BASE")
    code = plain_code(artifact, folder, lambda base: _where(store, base), auto=auto_class(store, artifact))
    if base and not artifact_of(base) and not hub(base) and store.place(base["digest"]) is None:
        code.insert(0, "# where its base lies this store does not know: align locate FOLDER")
    library = "transformers" if artifact.kind in WHOLE else "PEFT"
    align = (
        ["Load it with Align:", *(f"  {line}" for line in align_code(name, store)), ""]
        if artifact.kind != "classifier"
        else []
    )
    head = [f"Load it with {library}, after", *checkouts, ""] if checkouts else [f"Load it with {library}:"]
    return [*align, *head, *(f"  {line}" for line in code)]


def loadable(artifact: Artifact) -> bool:
    """Whether it holds a model; one that came from elsewhere may say so and hold none."""
    return artifact.kind in WHOLE or (
        artifact.kind in ON_A_BASE and artifact.base is not None and bool(adapters_of(artifact))
    )


def align_code(name: str, store: Store | None = None) -> list[str]:
    """`align.load`; a store that Align would not find by itself is named."""
    where = f", align.Store({quoted(str(store.path))})" if store and store.path != Store().path else ""
    return ["import align", f"model, tokenizer = align.load({quoted(name)}{where})"]


def plain_code(
    artifact: Artifact, folder: str, where: Callable[[BaseRecord], str], model: str = "model", auto: str = LANGUAGE
) -> list[str]:
    """Python that loads an artifact's files from `folder` with transformers and PEFT alone.

    Args:
        where: the arguments of `from_pretrained` for a base.
        model: folder of a full model inside `folder`; "" for the folder itself.
        auto: the auto class of a language model: `auto_class`.
    """
    if artifact.kind in WHOLE:
        place = f"{folder}/{model}" if model else folder
        auto = auto if artifact.kind == "model" else "AutoModelForSequenceClassification"
        return [
            f"from transformers import {auto}, AutoTokenizer",
            f"model = {auto}.from_pretrained({quoted(place)})",
            f"tokenizer = AutoTokenizer.from_pretrained({quoted(place)})",
            *(answer_lines(auto) if artifact.kind == "model" else CLASSIFY),
        ]
    assert artifact.base is not None
    heads = [place for place in ("", "value/") if f"{place}head.safetensors" in artifact.files]
    precision = DTYPES.get(str(artifact.config.get("precision")))
    arguments = where(artifact.base) + (f', dtype="{precision}"' if precision else "")
    code = ["from peft import PeftModel"] + (["from safetensors.torch import load_file"] if heads else [])
    if quantised := QUANTISATION.get(artifact.base["quantize"] or ""):
        code += [f"from transformers import {auto}, AutoTokenizer, BitsAndBytesConfig"]
        code += [f"quantization = BitsAndBytesConfig({quantised})"]
        arguments += ", quantization_config=quantization"
    else:
        code += [f"from transformers import {auto}, AutoTokenizer"]
    code += [f"base = {auto}.from_pretrained({arguments})"]
    adapters = adapters_of(artifact)
    if (rows := artifact.config.get("embedding_rows")) is not None:
        if type(rows) is int:
            code.append(
                f"base.resize_token_embeddings({rows}, mean_resizing=False)  # rows of new tokens, which the adapter "
                "fills"
            )
        adapters.reverse()  # PEFT 0.21 loads none without rows after the one that has them, the first of a line
    names = [f"adapter_{i}" for i in range(len(adapters))]
    places = [quoted(f"{folder}/{path}") for path in adapters]
    code.append(f'model = PeftModel.from_pretrained(base, {places[0]}, adapter_name="{names[0]}")')
    code += [
        f'model.load_adapter({place}, adapter_name="{name}")' for name, place in zip(names[1:], places[1:], strict=True)
    ]
    if len(names) > 1:
        code.append(f"{_activate(names)}  # all of them act together")
    code.append(f"tokenizer = AutoTokenizer.from_pretrained({quoted(f'{folder}/tokenizer')})")
    if artifact.kind == "adapter":
        code += [*_ends(artifact), *answer_lines(auto)]
    return code + [line for place in heads for line in (_value(artifact, folder, names) if place else _score(folder))]


def auto_class(store: Store, artifact: Artifact) -> str:
    """The auto class that loads all of an artifact's model, or of its base, by its config.json; a language model where
    that is not here."""
    stored = artifact_of(artifact.base) if artifact.base else None
    if artifact.kind == "model":
        stored = artifact.digest
    config: object = None
    with suppress(AlignError):  # the base may be on another machine
        if stored:
            config = json.loads(store.read(store.resolve(stored), f"model/{CONFIG}"))
        elif artifact.base and (place := store.place(artifact.base["digest"])):
            config = read_json(place / CONFIG)
    if isinstance(config, dict) and is_multimodal(config):
        return MULTIMODAL
    return TWO_PARTS if isinstance(config, dict) and is_encoder_decoder(config) else LANGUAGE


def answer_lines(auto: str) -> list[str]:
    """A question and its answer; what an encoder-decoder generates begins with no prompt."""
    behind = "" if auto == TWO_PARTS else ', prompt["input_ids"].shape[1] :'
    return [
        "",
        f"prompt = tokenizer.apply_chat_template({DIALOGUE}], add_generation_prompt=True, return_dict=True, "
        f'return_tensors="pt")',
        f"answer = model.generate(**prompt, max_new_tokens=64)[0{behind}]",
        "print(tokenizer.decode(answer, skip_special_tokens=True))",
    ]


def _ends(artifact: Artifact) -> list[str]:
    """An adapter's base has settings of its own, which know nothing of the adapter's template."""
    settings = {"eos_token_id": "stop_ids", "pad_token_id": "pad_token_id"}
    found = artifact.text or {}
    return [f"model.generation_config.{name} = {found[key]!r}" for name, key in settings.items() if key in found]


def _score(folder: str) -> list[str]:
    """The score head, which neither library knows."""
    return [
        f"head = load_file({quoted(f'{folder}/head.safetensors')})",
        "",
        "def score(input_ids):  # of one dialogue, rendered with the chat template up to its last answer's "
        "end-of-turn token",
        "    hidden = model(input_ids=input_ids, output_hidden_states=True).hidden_states[-1]",
        '    return hidden[:, -1].float() @ head["weight"] + head["bias"]',
    ]


def _value(artifact: Artifact, folder: str, policy: Sequence[str]) -> list[str]:
    """The value role that PPO trained beside the policy: adapters of its own and a head."""
    adapters = adapters_of(artifact, "value/")
    names = [f"value_{i}" for i in range(len(adapters))]
    return [
        *(
            f'model.load_adapter({quoted(f"{folder}/{path}")}, adapter_name="{name}")'
            for name, path in zip(names, adapters, strict=True)
        ),
        f"value_head = load_file({quoted(f'{folder}/value/head.safetensors')})",
        "",
        "def values(input_ids):  # of the state after each token; the policy acts again afterwards",
        f"    {_activate(names)}",
        "    hidden = model(input_ids=input_ids, output_hidden_states=True).hidden_states[-1]",
        f"    {_activate(policy)}",
        '    return hidden.float() @ value_head["weight"] + value_head["bias"]',
    ]


def _activate(names: Sequence[str]) -> str:
    quoted = ", ".join(f'"{name}"' for name in names)
    return f"model.base_model.set_adapter([{quoted}], inference_mode=True)"


def adapters_of(artifact: Artifact, place: str = "") -> list[str]:
    """The folders of the policy's adapters, in the order they are stacked; of another role's with its `place` in the
    artifact."""
    start = f"{place}adapters/"
    found = [
        name for path in artifact.files if path.startswith(start) for name in path.removeprefix(start).split("/")[:-1]
    ]
    return [f"{start}{number}" for number in sorted({int(name) for name in found if re.fullmatch("[0-9]{1,6}", name)})]


def artifact_of(base: BaseRecord) -> str | None:
    """The digest of a base that is itself an artifact."""
    return base["model"].removeprefix("artifact:") if base["model"].startswith("artifact:") else None


def _where(store: Store, base: BaseRecord) -> str:
    """A base as it is found on this machine."""
    return (
        '"BASE/model"' if artifact_of(base) else hub(base) or quoted(str(store.place(base["digest"]) or base["model"]))
    )


def hub(base: BaseRecord) -> str | None:
    """A base from the hub, at the commit it was trained on."""
    return f"{quoted(base['model'])}, revision={quoted(base['revision'])}" if base["revision"] else None


def quoted(text: str) -> str:
    """A text as a literal of Python, whatever it holds."""
    return json.dumps(text, ensure_ascii=False)
