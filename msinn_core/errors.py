"""Errors of the codec. Every one says in one sentence what is wrong, where, and what to do; every one pickles."""

from __future__ import annotations


class CodecError(Exception):
    """Base of everything that `msinn_core` raises on purpose."""


class PixelLimitError(CodecError):
    """A picture, or what a bitstream says of itself, is larger than this codec was told to take.

    Attributes:
        pixels: Its width times its height.
    """

    pixels: int = 0


class ConfigError(CodecError):
    """A configuration or an argument is outside what the network supports."""


class CheckpointError(CodecError):
    """A model file is damaged, incomplete, of another kind, or unknown."""


class BitstreamError(CodecError):
    """A bitstream breaks a rule of `FORMAT.md`."""


class BadMagicError(BitstreamError):
    """The bytes are not an msinn bitstream at all."""


class UnsupportedVersionError(BitstreamError):
    """An msinn bitstream of a version, profile or flag that this reader does not know."""


class TruncatedError(BitstreamError):
    """The bytes end before the bitstream does."""


class ChecksumError(BitstreamError):
    """Header or payload were changed after they were written."""


class ModelMismatchError(BitstreamError):
    """The bitstream was written with another model than the one at hand."""


class DeviceError(CodecError):
    """A device cannot do what was asked of it; another, the CPU, can. It says nothing of the picture."""


class DeviceMemoryError(DeviceError):
    """The device has too little memory for what was asked of it at once."""


class DeviceLostError(DeviceError):
    """The device, its driver or its compiler failed: it is not to be used any more."""
