# SPDX-License-Identifier: Apache-2.0
"""What de-identification does to each DICOM attribute: a list of what may stay, everything else goes.

A list of what must go would pass every attribute that nobody thought of: new, private or misplaced ones. So
this list names what reading a CT needs, with the action that makes it safe, at any depth of sequences.

Words and terms are lists too: a text survives only when it is made of words that a scanner's vocabulary
holds. So every text in a result comes from this package or from the site's key, never from the patient.

Source: DICOM PS3.15 Annex E, table E.1-1: Basic Profile with the options Clean Descriptors, Retain
Longitudinal Temporal Information with Modified Dates, and Retain Patient Characteristics. The
attributes: PS3.3, CT Image, Enhanced CT Image and Legacy Converted Enhanced CT Image.
"""

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["PROFILE", "Action", "Rule"]


class Action(StrEnum):
    """What happens to an attribute's value."""

    PSEUDONYM = "replaced by the patient's pseudonym"
    EMPTY = "emptied"
    FIXED = "replaced by a fixed word"
    UID = "replaced by a keyed UID; UIDs of the standard itself are kept"
    DATE = "shifted by the patient's number of days; of a date with time the hour is kept"
    TIME = "cut to the hour"
    AGE = "in whole years, 90 for all who are older"
    COARSE = "rounded to 5 cm or 5 kg, removed outside 1.40-2.00 m or 40-130 kg"
    NUMBER = "kept if it is a number below 100,000; longer ones may be identifiers or dates"
    TERM = "kept if it is a known term of the standard or of a scanner"
    WORDS = "only words of a scanner's vocabulary are kept"
    KERNEL = "kept if it is written like a reconstruction kernel"
    MAKER = "replaced by the maker's usual name"
    MODEL = "only words of the makers' model names are kept"
    ITEMS = "kept; this list applies inside, and codes stay only if DICOM's dictionaries hold them"
    PIXELS = "kept; comments inside compressed images and bits outside of the values are cleared"


@dataclass(frozen=True)
class Rule:
    """What happens to an attribute.

    Attributes:
        action: How the value is made safe.
        otherwise: What stands for a value that is not safe; None: the attribute is removed.
    """

    action: Action
    otherwise: str | None = None


def _rules(rule: Rule, keywords: str) -> dict[str, Rule]:
    """Give many attributes the same rule."""
    return dict.fromkeys(keywords.split(), rule)


PROFILE: dict[str, Rule] = {
    **_rules(Rule(Action.PSEUDONYM), "PatientName PatientID"),
    **_rules(
        Rule(Action.EMPTY),
        "PatientBirthDate AccessionNumber ReferringPhysicianName StudyID PositionReferenceIndicator "
        "AcquisitionContextSequence",
    ),
    **_rules(Rule(Action.FIXED, "REMOVED"), "DeviceSerialNumber SoftwareVersions"),
    **_rules(
        Rule(Action.UID),
        "SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID "
        "AcquisitionUID IrradiationEventUID DimensionOrganizationUID ConcatenationUID "
        "SOPInstanceUIDOfConcatenationSource EquipmentFrameOfReferenceUID ReferencedSOPClassUID "
        "ReferencedSOPInstanceUID",
    ),
    **_rules(Rule(Action.DATE, ""), "StudyDate ContentDate"),
    **_rules(
        Rule(Action.DATE),
        "SeriesDate AcquisitionDate AcquisitionDateTime FrameAcquisitionDateTime FrameReferenceDateTime",
    ),
    **_rules(Rule(Action.TIME, ""), "StudyTime ContentTime"),
    **_rules(Rule(Action.TIME), "SeriesTime AcquisitionTime"),
    **_rules(Rule(Action.AGE), "PatientAge"),
    **_rules(Rule(Action.COARSE), "PatientSize PatientWeight"),
    **_rules(Rule(Action.NUMBER, ""), "SeriesNumber AcquisitionNumber InstanceNumber KVP SliceThickness"),
    **_rules(
        Rule(Action.NUMBER),
        # Image
        "NumberOfFrames RepresentativeFrameNumber Rows Columns SamplesPerPixel "
        "BitsAllocated BitsStored HighBit PixelRepresentation PixelAspectRatio "
        "SmallestImagePixelValue LargestImagePixelValue PixelPaddingValue PixelPaddingRangeLimit "
        "RescaleIntercept RescaleSlope WindowCenter WindowWidth LossyImageCompressionRatio "
        "ImagesInAcquisition TemporalPositionIdentifier NumberOfTemporalPositions TemporalResolution "
        "TemporalPositionIndex TemporalPositionTimeOffset InConcatenationNumber "
        "InConcatenationTotalNumber ConcatenationFrameOffsetNumber ReferencedFrameNumber "
        # Place
        "PixelSpacing SpacingBetweenSlices ImagePositionPatient ImageOrientationPatient SliceLocation "
        "InStackPositionNumber DimensionIndexValues DimensionIndexPointer FunctionalGroupPointer "
        "FrameAcquisitionNumber TablePosition IsocenterPosition DataCollectionCenterPatient "
        "ReconstructionTargetCenterPatient "
        # Acquisition and reconstruction
        "DataCollectionDiameter ReconstructionDiameter ReconstructionFieldOfView ReconstructionAngle "
        "ReconstructionPixelSpacing DistanceSourceToDetector DistanceSourceToPatient "
        "DistanceSourceToDataCollectionCenter GantryDetectorTilt TableHeight TubeAngle ExposureTime "
        "XRayTubeCurrent Exposure ExposureTimeInms XRayTubeCurrentInmA ExposureInmAs GeneratorPower "
        "FocalSpots RevolutionTime SingleCollimationWidth TotalCollimationWidth TableSpeed "
        "TableFeedPerRotation SpiralPitchFactor CTDIvol WaterEquivalentDiameter AcquisitionDuration "
        "FrameAcquisitionDuration NominalPercentageOfRespiratoryPhase NominalPercentageOfCardiacPhase "
        "NominalCardiacTriggerDelayTime "
        # Contrast
        "ContrastBolusVolume ContrastBolusTotalDose ContrastFlowRate ContrastFlowDuration "
        "ContrastBolusIngredientConcentration ContrastBolusAgentNumber",
    ),
    **_rules(Rule(Action.TERM, ""), "PatientSex PatientPosition PatientOrientation Laterality"),
    **_rules(Rule(Action.TERM, "OTHER"), "ImageType FrameType"),
    **_rules(Rule(Action.TERM, "1"), "StackID"),
    **_rules(
        Rule(Action.TERM),
        "Modality SmokingStatus BodyPartExamined ImageLaterality FrameLaterality "
        "AnatomicalOrientationType PhotometricInterpretation PresentationLUTShape RescaleType "
        "VOILUTFunction BurnedInAnnotation LossyImageCompression LossyImageCompressionMethod "
        "SpatialLocationsPreserved QualityControlImage ScanOptions RotationDirection "
        "ExposureModulationType FilterType FilterMaterial ConvolutionKernelGroup "
        "ReconstructionAlgorithm AcquisitionType ConstantVolumeFlag FluoroscopyFlag PixelPresentation "
        "VolumetricProperties VolumeBasedCalculationTechnique ContentQualification "
        "MultienergyCTAcquisition SliceProgressionDirection DimensionOrganizationType "
        "ContrastBolusAgentAdministered ContrastBolusAgentDetected ContrastBolusAgentPhase",
    ),
    **_rules(
        Rule(Action.WORDS), "StudyDescription SeriesDescription ProtocolName ContrastBolusRoute ImageFilter"
    ),
    **_rules(Rule(Action.WORDS, "CONTRAST AGENT"), "ContrastBolusAgent"),
    **_rules(Rule(Action.KERNEL, "UNKNOWN"), "ConvolutionKernel"),
    **_rules(Rule(Action.MAKER, "UNKNOWN"), "Manufacturer"),
    **_rules(Rule(Action.MODEL, "UNKNOWN"), "ManufacturerModelName"),
    **_rules(
        Rule(Action.ITEMS),
        "SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence PlanePositionSequence "
        "PlaneOrientationSequence PixelMeasuresSequence PixelValueTransformationSequence "
        "FrameVOILUTSequence FrameContentSequence FrameAnatomySequence CTImageFrameTypeSequence "
        "CTAcquisitionTypeSequence CTAcquisitionDetailsSequence CTTableDynamicsSequence "
        "CTGeometrySequence CTReconstructionSequence CTExposureSequence CTXRayDetailsSequence "
        "CTPositionSequence IrradiationEventIdentificationSequence TemporalPositionSequence "
        "RespiratorySynchronizationSequence CardiacSynchronizationSequence ContrastBolusUsageSequence "
        "ContrastBolusAgentSequence ContrastBolusAdministrationRouteSequence "
        "ContrastBolusIngredientCodeSequence AnatomicRegionSequence DimensionOrganizationSequence "
        "DimensionIndexSequence ReferencedImageSequence SourceImageSequence "
        "PurposeOfReferenceCodeSequence DerivationImageSequence DerivationCodeSequence "
        "ConversionSourceAttributesSequence ReferencedImageEvidenceSequence "
        "SourceImageEvidenceSequence ReferencedSeriesSequence ReferencedSOPSequence "
        "UnassignedSharedConvertedAttributesSequence UnassignedPerFrameConvertedAttributesSequence "
        "CTDIPhantomTypeCodeSequence WaterEquivalentDiameterCalculationMethodCodeSequence",
    ),
    **_rules(Rule(Action.PIXELS), "PixelData"),
}
"""Every attribute that may stay, by keyword. What is not here is removed."""
