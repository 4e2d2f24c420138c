"""An artifact as a plain model of transformers or PEFT, for any code that knows nothing of Align."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING

from align import models, packed
from align.folders.adapter import SHAPE, rows_needed
from align.ground.errors import InputError
from align.inputs.bases import locate_base
from align.stage.on_base import adapter_folders
from align.store import Artifact, Store

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load(
    artifact: Artifact | str, store: Store | None = None
) -> tuple[PeftModel | PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a `model`, `adapter` or `reward` artifact, ready for `generate`.

    An adapter comes on its base, quantised as it was trained, with all its adapters active together; attention is
    transformers' own. A reward's score head is `model.score_head`: (N, D) hidden states -> (N,) scores. Precision is
    the one it was trained in; `.float()` afterwards leaves what transformers rounded while loading, such as Gemma's
    scale of embeddings (25.25 in bf16 for 25.298), by which logits differ from those of a base that was read in fp32.

    Raises: InputError for an artifact that holds no model, and when its base is not found or has changed.
    """
    store = store or Store()
    artifact = store.resolve(artifact)
    name = store.label(artifact)
    if artifact.kind == "classifier":
        raise InputError(
            f"{name} is {artifact.described}, which plain transformers loads: `align show {name}` prints how."
        )
    if artifact.kind not in ("model", "adapter", "reward"):
        raise InputError(f"{name} is {artifact.described}, which holds no model. `align show {name}` lists its files.")
    folder = store.folder(artifact)
    base = locate_base(artifact.base, store) if artifact.kind != "model" and artifact.base else None

    from peft import PeftModel
    from transformers import AutoTokenizer

    dtype = models.precision.resolve_precision(artifact.config.get("precision", "auto"))
    plain = models.base.load_base(
        base.path if base else folder / "model", quantize=base.quantize if base else None, dtype=dtype
    )
    packed.attention.select_native_attention(plain)
    tokenizer = AutoTokenizer.from_pretrained(folder / ("tokenizer" if base else "model"), trust_remote_code=False)
    if artifact.text:
        assert plain.generation_config is not None
        plain.generation_config.eos_token_id = list(artifact.text["stop_ids"])
        plain.generation_config.pad_token_id = artifact.text["pad_token_id"]
    if base is None:
        return plain.requires_grad_(True), tokenizer
    shapes = {path: json.loads((path / SHAPE).read_text(encoding="utf-8")) for path in adapter_folders(folder)}
    packed.token_rows.enlarge(plain, max(map(rows_needed, shapes.values())))
    # once one has rows of tokens, PEFT loads none without
    adapters = sorted(shapes, key=lambda path: rows_needed(shapes[path]))
    names = [f"adapter_{i}" for i in range(len(adapters))]
    with warnings.catch_warnings():
        # PEFT 0.21 reads the old name
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        model = PeftModel.from_pretrained(plain, str(adapters[0]), adapter_name=names[0])
    for name, adapter in zip(names[1:], adapters[1:], strict=True):
        model.load_adapter(str(adapter), adapter_name=name)
    model.base_model.set_adapter(names, inference_mode=True)  # type: ignore[operator]
    if (folder / "head.safetensors").exists():
        model.score_head = models.heads.ScoreHead.load(folder / "head.safetensors").to(plain.device)
    return model.eval(), tokenizer
