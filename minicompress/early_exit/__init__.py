"""Conditional computation: easy inputs leave a network early."""

from minicompress.early_exit.exits import EarlyExit, attach_heads, confidence, exit_logits, predict
from minicompress.early_exit.file import load_exits, save_exits
from minicompress.early_exit.thresholds import (
    ExitPoint,
    choose_thresholds,
    exit_curve,
    exit_macs,
    expected_macs,
)
from minicompress.early_exit.training import fit_exits

__all__ = [
    "EarlyExit",
    "ExitPoint",
    "attach_heads",
    "choose_thresholds",
    "confidence",
    "exit_curve",
    "exit_logits",
    "exit_macs",
    "expected_macs",
    "fit_exits",
    "load_exits",
    "predict",
    "save_exits",
]
