"""Libraries that need help to be imported on some machines; see `guidance.stubs`."""

from guidance.stubs import torchaudio_transforms, transformers

__all__ = ["torchaudio_transforms", "transformers"]
