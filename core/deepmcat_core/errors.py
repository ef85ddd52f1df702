"""Everything that can go wrong, as one tree.

DeepmcatError
├── ImageError                an image that cannot be answered; never ends a run or a stream
│   ├── NotAnImage            a report, a plan, a waveform …: counted apart, not a failure
│   ├── UnsupportedImage      video, JPIP, Part 2 syntaxes, formats we do not read
│   ├── CorruptImage          bytes that do not mean what they say
│   ├── ImageTooLarge         over a limit: bytes, pixels, frames, depth, memory, time
│   └── FrameOutOfRange       a frame that the image does not have
├── ArtifactError             an artifact that cannot be used as it is
│   ├── ArtifactMissing       no artifact there
│   ├── ArtifactFormat        not an artifact, or of a format version we do not know
│   ├── ArtifactDamaged       a file is missing, changed, or not what the manifest says
│   └── ArtifactSelfTest      loads, but does not compute what it did when it was made
├── ConfigError               a setting, a path or a data set that a person has to correct
│   └── MissingExtra          a package that the install lacks; the message has the command that brings it
└── InferenceError            the encoder failed: out of memory, CUDA

Messages give the bad value, the limit and the way out. They never contain text from an image's header, a UID, or
the message of a decoder: those can hold patient data.
"""

from __future__ import annotations

from typing import ClassVar


class DeepmcatError(Exception):
    """The root. `reason` is the machine-readable name that travels on the wire and in reports."""

    reason: ClassVar[str] = "INTERNAL"


class ImageError(DeepmcatError):
    """An image that cannot be answered."""


class NotAnImage(ImageError):
    """A DICOM object without pixels to categorise, such as a structured report."""

    reason = "NOT_AN_IMAGE"


class UnsupportedImage(ImageError):
    """A format or encoding that we do not read."""

    reason = "UNSUPPORTED_IMAGE"


class CorruptImage(ImageError):
    """Bytes that do not mean what they say."""

    reason = "CORRUPT_IMAGE"


class ImageTooLarge(ImageError):
    """An image over one of the limits."""

    reason = "IMAGE_TOO_LARGE"


class FrameOutOfRange(ImageError):
    """A frame that the image does not have."""

    reason = "FRAME_OUT_OF_RANGE"


class ArtifactError(DeepmcatError):
    """An artifact that cannot be used as it is."""

    reason = "ARTIFACT_ERROR"


class ArtifactMissing(ArtifactError):
    """There is no artifact at the path."""


class ArtifactFormat(ArtifactError):
    """Not an artifact, or of a format version that this release does not know."""


class ArtifactDamaged(ArtifactError):
    """A file is missing, has changed, or is not what the manifest says."""


class ArtifactSelfTest(ArtifactError):
    """The artifact loads but does not compute what it did when it was made."""


class ConfigError(DeepmcatError):
    """A setting, a path or a data set that a person has to correct."""

    reason = "CONFIG_ERROR"


class MissingExtra(ConfigError):
    """A package that the install lacks."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"this needs {package}, which is not installed: pip install 'deepmcat[{extra}]'")
        self.package = package
        self.extra = extra


class InferenceError(DeepmcatError):
    """The encoder failed on a batch."""

    reason = "INFERENCE_FAILED"
