"""Heads: what the fused memory is read out as."""

from omni_lab.heads.answer import AnswerHead

__all__ = ["AnswerHead"]
