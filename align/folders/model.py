"""A model's folder, read and checked without torch: its configuration, the headers of its weight files, its tokenizer's
files.

Everything that transformers reads from such a folder is in `MODEL_FILES`, or is refused here in one sentence.
"""

from __future__ import annotations

from pathlib import Path

from align.folders.config import CONFIG, check_config, read_json
from align.folders.weights import check_weights, instead
from align.ground.errors import InputError
from align.ground.json import Json

MODEL_FILES = [
    "*.json",
    "*.safetensors",
    "*.jinja",
    "additional_chat_templates/*.jinja",
    "merges.txt",
    "vocab.txt",
    "dict.txt",
    "bpe.codes",
    "prophetnet.tokenizer",
    "*.model",
    "*.spm",
    "*.tiktoken",
]
"""What a base is: weights, config, generation settings, templates, and each file that a tokenizer of transformers is
built from."""
VOCABULARIES = ["tokenizer.json", "tekken.json", "vocab.txt", "merges.txt", "bpe.codes", "prophetnet.tokenizer"]
VOCABULARIES += ["*.model", "*.spm", "*.tiktoken"]
"""Files one of which a tokenizer cannot do without; a vocab.json says nothing without its merges."""
PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
"""What a multimodal model's images are read with: Align reads none of it, and a merged model brings it along."""


def check_folder(folder: Path, *, classifier: bool = False) -> Json:
    """The configuration of a model folder that transformers can load as it is, with nothing drawn, left out or read
    from elsewhere; a language model, or a merged reward (`classifier`), which only leaves the store.

    Raises: InputError with the reason and the remedy.
    """
    if not (folder / CONFIG).is_file():
        raise InputError(
            f"{folder} has no {CONFIG}; expected a model folder in the Hugging Face layout.{instead(folder)}"
        )
    if (folder / "adapter_config.json").is_file():
        raise InputError(
            f"{folder} holds both a model and an adapter (adapter_config.json), which transformers would put into the "
            "model. For the model alone, move the adapter's files away; to start from the adapter, move them to a "
            "folder of their own and `align import` that."
        )
    config = read_json(folder / CONFIG)
    check_config({**config, "architectures": None} if classifier else config, folder)
    for name in ("generation_config.json", "tokenizer_config.json"):
        if (folder / name).exists():
            read_json(folder / name)
    check_weights(folder, config)
    if not any(path.is_file() for pattern in VOCABULARIES for path in folder.glob(pattern)):
        found = "a vocab.json without its merges.txt" if (folder / "vocab.json").is_file() else "no vocabulary"
        raise InputError(
            f"{folder} has {found}, so no tokenizer. Copy the tokenizer's files of its model there (tokenizer.json)."
        )
    return config
