# SPDX-License-Identifier: Apache-2.0
"""The coded words of DICOM results: the standard's own codes, and private ones where it has none.

Every standard code here stands in a context group of DICOM PS3.16 or is a UCUM unit or LOINC procedure. No
standard code was found for the others; they are in the private scheme ``99UCADI``, whose list is
`PRIVATE_MEANINGS`. A code is never reused for another meaning.
"""

from pydicom.sr.coding import Code

from ucadi.types import FindingClass

__all__ = [
    "AGREEMENT",
    "AGREEMENTS",
    "ANATOMY",
    "CANNOT_SAY",
    "CONSOLIDATION",
    "COUNT",
    "CT_CHEST",
    "FINDING",
    "FINDINGS",
    "GRADIENT_CLASS_ACTIVATION",
    "GROUND_GLASS",
    "INPUT_REPAIR",
    "INPUT_WARNING",
    "LEFT",
    "LESION",
    "LESION_COUNT",
    "LESION_SHARE",
    "LUNG",
    "MILLILITER",
    "MODALITY_CT",
    "MODEL_ORIGIN",
    "MORPHOLOGICAL_OPERATIONS",
    "MORPHOLOGY",
    "NOTICE",
    "PERCENT",
    "PRIVATE_MEANINGS",
    "PRIVATE_SCHEME",
    "PROBABILITIES",
    "RIGHT",
    "SOURCE",
    "SPATIAL",
    "SPREADS",
    "STATEMENT",
    "VOLUME",
    "Code",
]

PRIVATE_SCHEME = "99UCADI"

PRIVATE_MEANINGS: dict[str, str] = {
    "NOTICE": "Notice on use",
    "STATEMENT": "Result in words",
    "MODEL-ORIGIN": "What the model was trained on",
    "INPUT-REPAIR": "What was changed when the images were read",
    "INPUT-WARNING": "What was doubted when the images were read",
    "FINDING": "Class named by the model",
    "HEALTHY": "Healthy lungs",
    "COVID-19": "COVID-19 pneumonia",
    "OTHER-VIRAL": "Another viral pneumonia",
    "BACTERIAL": "Bacterial pneumonia",
    "CANNOT-SAY": "Cannot say",
    "P-HEALTHY": "Probability of healthy lungs, mean of the draws",
    "P-COVID-19": "Probability of COVID-19 pneumonia, mean of the draws",
    "P-OTHER-VIRAL": "Probability of another viral pneumonia, mean of the draws",
    "P-BACTERIAL": "Probability of bacterial pneumonia, mean of the draws",
    "SD-HEALTHY": "Standard deviation of P-HEALTHY over the draws",
    "SD-COVID-19": "Standard deviation of P-COVID-19 over the draws",
    "SD-OTHER-VIRAL": "Standard deviation of P-OTHER-VIRAL over the draws",
    "SD-BACTERIAL": "Standard deviation of P-BACTERIAL over the draws",
    "AGREEMENT": "Agreement of the draws on the first class",
    "LOW": "Low agreement",
    "MODERATE": "Moderate agreement",
    "HIGH": "High agreement",
    "CONSOLIDATION": "Consolidation by density",
    "LESION-SHARE": "Lesions inside the lungs as a share of both lungs",
    "LESION-COUNT": "Number of connected lesions",
}
"""Every private code with its meaning."""


def _private(value: str) -> Code:
    """Return a code of the private scheme."""
    return Code(value, PRIVATE_SCHEME, PRIVATE_MEANINGS[value])


# -- units and procedures -----------------------------------------------------------------------------------
MILLILITER = Code("mL", "UCUM", "mL")  # pydicom's dictionary has no millilitre
PERCENT = Code("%", "UCUM", "Percent")
COUNT = Code("1", "UCUM", "no units")
MODALITY_CT = Code("CT", "DCM", "Computed Tomography")  # CID 29
CT_CHEST = Code("24627-2", "LN", "CT Chest")

# -- what is marked, by the standard's context groups --------------------------------------------------------
ANATOMY = Code("91723000", "SCT", "Anatomical Structure")  # CID 7150
MORPHOLOGY = Code("49755003", "SCT", "Morphologically Abnormal Structure")  # CID 7150
SPATIAL = Code("309825002", "SCT", "Spatial and Relational Concept")  # CID 7150
LUNG = Code("39607008", "SCT", "Lung")  # CID 7151
RIGHT = Code("24028007", "SCT", "Right")  # CID 244
LEFT = Code("7771000", "SCT", "Left")  # CID 244
MORPHOLOGICAL_OPERATIONS = Code("123104", "DCM", "Morphological Operations")  # CID 7162
LESION = Code("52988006", "SCT", "Lesion")  # CID 7159
GROUND_GLASS = Code("112120", "DCM", "Ground glass opacity")  # CID 6102
GRADIENT_CLASS_ACTIVATION = Code("130403", "DCM", "Gradient-weighted class activation")  # CID 217
SOURCE = Code("260753009", "SCT", "Source")
VOLUME = Code("118565006", "SCT", "Volume")  # CID 218

# -- what only this project says ----------------------------------------------------------------------------
NOTICE = _private("NOTICE")
STATEMENT = _private("STATEMENT")
MODEL_ORIGIN = _private("MODEL-ORIGIN")
INPUT_REPAIR = _private("INPUT-REPAIR")
INPUT_WARNING = _private("INPUT-WARNING")
FINDING = _private("FINDING")
CANNOT_SAY = _private("CANNOT-SAY")
AGREEMENT = _private("AGREEMENT")
CONSOLIDATION = _private("CONSOLIDATION")
LESION_SHARE = _private("LESION-SHARE")
LESION_COUNT = _private("LESION-COUNT")

_WORDS = {
    FindingClass.HEALTHY: "HEALTHY",
    FindingClass.COVID_19: "COVID-19",
    FindingClass.OTHER_VIRAL: "OTHER-VIRAL",
    FindingClass.BACTERIAL: "BACTERIAL",
}
FINDINGS = {finding: _private(word) for finding, word in _WORDS.items()}
PROBABILITIES = {finding: _private(f"P-{word}") for finding, word in _WORDS.items()}
SPREADS = {finding: _private(f"SD-{word}") for finding, word in _WORDS.items()}
AGREEMENTS = {word.lower(): _private(word) for word in ("LOW", "MODERATE", "HIGH")}
