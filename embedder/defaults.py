"""Every default that users meet, in one file that imports nothing of ours.

Help, schemas and settings show these without importing torch.
"""

from __future__ import annotations

from typing import Final

DEFAULT_MODEL: Final = "sprout04"
DEFAULT_DETECTOR: Final = "fmn10+tf-256_advanced-kd-weak-strong"

SCENE_WINDOW_MS: Final = 10_000.0
SCENE_HOP_MS: Final = 2_500.0
TIMESTAMP_WINDOW_MS: Final = 160.0
TIMESTAMP_HOP_MS: Final = 50.0

FRAME_MS: Final = 40  # of the frame-wise networks (arXiv 2503.11373)
THRESHOLD: Final = 0.5  # the probability from which on a label sounds
MEDIAN: Final = 9  # frames: the best for fmn10 (arXiv 2503.11373, section III-B)
TOP_K: Final = 10  # tags shown, best first

HOST: Final = "127.0.0.1"
PORT: Final = 8000

# What folders are searched for; a file that is named itself may be called anything.
AUDIO_SUFFIXES: Final = (
    *(".wav", ".wave", ".w64", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".flac"),
    *(".mp2", ".mp3", ".aac", ".ac3", ".eac3", ".amr", ".ogg", ".oga", ".opus", ".spx"),
    *(".m4a", ".m4b", ".mp4", ".mov", ".3gp", ".mka", ".mkv", ".webm", ".wma", ".asf"),
)
