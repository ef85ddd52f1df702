"""The border to other people's decoders: what they raise leaves here as one of our errors, and they do it quietly.

pydicom, Pillow, numpy and the codecs raise what the moment suggests: ValueError, AttributeError, KeyError,
struct.error, RecursionError, MemoryError, zlib.error, their own. Their messages and warnings quote header values, so
neither may get into an error of ours, a log or a terminal.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from deepmcat_core.errors import CorruptImage, ImageError, ImageTooLarge, UnsupportedImage

# pydicom logs what it warns about, with values from the header in it.
logging.getLogger("pydicom").propagate = False


@contextmanager
def translated() -> Iterator[None]:
    """Raise ImageError, from its cause, for anything that goes wrong inside; silence warnings."""
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            yield
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageTooLarge("the image needs more memory than there is") from error
    except RecursionError as error:
        raise ImageTooLarge("the image's sequences are nested too deeply") from error
    except NotImplementedError as error:
        raise UnsupportedImage("the image is encoded in a way that is not read") from error
    except Exception as error:  # anything at all: a decoder must not be able to end a run or a stream
        raise CorruptImage("the image's bytes do not mean what they say; it cannot be decoded") from error
