"""What rendering did to the records beside rendering them."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass
class Counts:
    """What rendering decided, to be printed and put into the metrics."""

    records: int = 0
    dropped_too_long: int = 0
    dropped_equal_once_cut: int = 0
    """Pairs whose chosen equals rejected up to max_length."""
    dropped_by_template: int = 0
    """The template raised on them, and `template_errors: drop` is set."""
    cut: int = 0
    missing_end: int = 0
    answers_not_learnt: int = 0
    """Answers with `weight: 0` or `train: false`."""
    answers_taken_apart: int = 0
    """Answers learnt in a sequence of their own, since the template renders them in another way once later turns follow."""
    earlier_thoughts_left_out: int = 0
    """Records whose template leaves out what the assistant thought in turns that are only read."""
    tokens_across_prompt_end: int = 0
    """Answers whose first token begins inside the prompt: sampling begins with other tokens there."""
    doubled_starts_cut: int = 0
    doubled_ends_cut: int = 0
    special_tokens_kept: int = 0
    """Records with special tokens in their contents, which act (`special_tokens: keep`)."""
    special_tokens_as_text: int = 0

    def once(self, before: Counts) -> None:
        """Count a record once where its prompt and its answers were each counted; `before`: what was counted before it."""
        for name in ("earlier_thoughts_left_out", "doubled_starts_cut", "special_tokens_kept", "special_tokens_as_text"):
            setattr(self, name, min(getattr(self, name), getattr(before, name) + 1))

    @property
    def plain(self) -> bool:
        """Whether there is nothing to tell but how many records there were."""
        return asdict(self) == asdict(Counts(self.records))

    def __str__(self) -> str:
        parts = [f"{self.records:,} records"]
        parts += [f"{n:,} {name.replace('_', ' ')}" for name, n in asdict(self).items() if n and name != "records"]
        return ", ".join(parts)
