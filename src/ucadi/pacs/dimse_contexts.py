# SPDX-License-Identifier: Apache-2.0
"""What an association is asked for: which kinds of objects, in which encodings."""

from collections.abc import Iterator, Sequence

from pydicom.uid import (
    UID,
    BasicTextSRStorage,
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    CTImageStorage,
    EncapsulatedPDFStorage,
    EnhancedCTImageStorage,
    EnhancedSRStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    KeyObjectSelectionDocumentStorage,
    ParametricMapStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    XRayRadiationDoseSRStorage,
)
from pynetdicom import AllStoragePresentationContexts, build_context
from pynetdicom.presentation import PresentationContext

from ucadi.pacs.server import Instance

__all__ = ["by_contexts", "storage_contexts"]

_MAX_CONTEXTS = 128  # of one association, by the standard
_LOSSLESS = (JPEGLSLossless, JPEG2000Lossless, JPEGLosslessSV1, JPEGLossless, RLELossless)
_PLAIN: list[str | UID] = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
_COMPRESSED_KINDS = (CTImageStorage, EnhancedCTImageStorage, SegmentationStorage)
_CHEST_CT_KINDS = (  # what the studies that we pull hold, scans and results
    *_COMPRESSED_KINDS,
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    EnhancedSRStorage,
    BasicTextSRStorage,
    XRayRadiationDoseSRStorage,
    SecondaryCaptureImageStorage,
    KeyObjectSelectionDocumentStorage,
    ParametricMapStorage,
    EncapsulatedPDFStorage,
)
_ALL_KINDS = [UID(context.abstract_syntax or "") for context in AllStoragePresentationContexts]


def by_contexts(
    instances: Sequence[Instance],
) -> Iterator[tuple[list[Instance], list[PresentationContext]]]:
    """Yield instances with the contexts they need, in as many groups as associations have room for."""
    kinds = sorted({(instance.sop_class, instance.transfer_syntax) for instance in instances})
    for start in range(0, len(kinds), _MAX_CONTEXTS):
        group = kinds[start : start + _MAX_CONTEXTS]
        chosen = [i for i in instances if (i.sop_class, i.transfer_syntax) in group]
        yield chosen, [build_context(kind, syntax) for kind, syntax in group]


def storage_contexts() -> list[PresentationContext]:
    """Return what we can take in by C-GET: what a chest CT study holds, and other kinds as there is room.

    A context of its own for each compression, as the server chooses but one syntax per context.
    """
    compressed = [build_context(kind, syntax) for kind in _COMPRESSED_KINDS for syntax in _LOSSLESS]
    others = [kind for kind in _ALL_KINDS if kind not in _CHEST_CT_KINDS]
    plain = [build_context(kind, _PLAIN) for kind in (*_CHEST_CT_KINDS, *others)]
    return [*compressed, *plain][: _MAX_CONTEXTS - 1]  # one is for the request itself
