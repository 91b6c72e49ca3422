# SPDX-License-Identifier: Apache-2.0
"""The exception tree, the exit statuses and the register of error codes.

An error has two audiences. ``str(error)`` is for the person at the machine: what happened with the value
seen, where, and how to mend it. Only ``code`` and ``public_message`` may cross to a coordinator, and they
come from the register below, so they cannot carry a path, a name or an identifier.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar

__all__ = [
    "CODES",
    "CheckpointError",
    "CohortError",
    "ConfigError",
    "DataError",
    "DicomError",
    "EngineError",
    "ErrorCode",
    "ExitStatus",
    "FederationError",
    "GeometryError",
    "ModelError",
    "NiftiError",
    "NotAuthorizedError",
    "ProtocolVersionError",
    "QuorumError",
    "StoreError",
    "StoreUnreachableError",
    "UcadiError",
    "UnreachableError",
    "UpdateRejectedError",
]


class ExitStatus(IntEnum):
    """What a command's exit status means."""

    OK = 0
    FAILED = 1
    USAGE = 2
    REFUSED_INPUT = 3
    NOT_AUTHORIZED = 4
    UNREACHABLE = 5


@dataclass(frozen=True)
class ErrorCode:
    """One registered error.

    Attributes:
        public_message: One sentence without any value from a site's data.
        cure: What the person at the machine can do.
    """

    public_message: str
    cure: str


CODES: dict[str, ErrorCode] = {
    # -- input: a CT that is refused ------------------------------------------------------------------
    "input-not-found": ErrorCode("The input does not exist.", "Check the path."),
    "input-forbidden": ErrorCode(
        "A file or folder of the input may not be read.", "Ask for the right to read it."
    ),
    "input-unsupported": ErrorCode(
        "The input is in a format that ucadi does not read.",
        "Give a DICOM folder, a zip of one, or a NIfTI, NRRD or MetaImage file (.nii, .nii.gz, .nrrd, .mha).",
    ),
    "input-unreadable": ErrorCode("The input is damaged or cut short.", "Export the study again."),
    "input-too-costly": ErrorCode(
        "Reading the input takes more memory, time or files than any chest CT needs.",
        "Give one study at a time, as the scanner or the PACS exports it.",
    ),
    "input-links": ErrorCode(
        "The folder holds links that lead out of it, which are not followed.",
        "Name the folder that holds the files themselves, or copy them.",
    ),
    "archive-unsafe": ErrorCode(
        "The archive has too many entries, is too large, or expands too much.",
        "Send one study per archive, without archives inside.",
    ),
    "dicom-none": ErrorCode("No DICOM image was found.", "Point to the folder that holds the series."),
    "dicom-not-ct": ErrorCode("No CT series was found.", "Export a CT series (modality CT)."),
    "dicom-localizer": ErrorCode(
        "Only localizer images were found.", "Export the axial series, not the scout view."
    ),
    "dicom-not-axial": ErrorCode("No axial series was found.", "Export the axial series of the study."),
    "dicom-too-few-slices": ErrorCode(
        "The series has too few slices to be a volume.", "Export the complete series (more than 15 slices)."
    ),
    "dicom-uneven-spacing": ErrorCode(
        "Too many slices are missing, or the gaps are too wide.", "Export the complete series again."
    ),
    "dicom-duplicate-slices": ErrorCode(
        "Several slices lie at the same position.", "Export one acquisition per series."
    ),
    "dicom-tilted": ErrorCode(
        "The slices lean by more than a gantry can tilt.", "Export an axial series with its true positions."
    ),
    "dicom-mixed-geometry": ErrorCode(
        "The slices differ in size, pixel spacing or orientation.", "Export one acquisition per series."
    ),
    "dicom-no-geometry": ErrorCode(
        "The slices carry no position, orientation or pixel spacing.",
        "Export from the PACS with full headers.",
    ),
    "dicom-undecodable": ErrorCode(
        "The pixel data cannot be decoded.", "Export uncompressed or losslessly compressed images."
    ),
    "dicom-burned-in": ErrorCode(
        "Text is burned into the images.", "Export the original images, without annotations."
    ),
    "dicom-mixed-patients": ErrorCode(
        "Images of several patients carry the same series.", "Export each patient's series again."
    ),
    "dicom-many-studies": ErrorCode(
        "The input holds several studies.", "Give one study, or name a series with --series."
    ),
    "series-not-found": ErrorCode(
        "The series asked for is not in the input.", "Take one of the series that `ucadi inspect` lists."
    ),
    "volumes-many": ErrorCode(
        "The input holds several volumes and no DICOM series.", "Give the file of one CT volume."
    ),
    "dicom-no-identity": ErrorCode(
        "The series lacks identifiers that a DICOM result must name.",
        "Export from the PACS with full headers, or leave out --dicom.",
    ),
    "dicom-not-result": ErrorCode(
        "The DICOM file is not the kind of result that was asked for.",
        "Give a binary segmentation, or a measurement report.",
    ),
    "dicom-source-needed": ErrorCode(
        "DICOM results need DICOM images to refer to.",
        "Give the DICOM series that the volume was made from, or leave out --dicom.",
    ),
    "nifti-no-orientation": ErrorCode(
        "The NIfTI header states no orientation, or contradicts itself.",
        "Write the file again with a valid sform or qform.",
    ),
    "nifti-not-3d": ErrorCode("The NIfTI file does not hold one 3D volume.", "Give one 3D CT volume."),
    "volume-too-few-slices": ErrorCode(
        "The file has too few slices to be a volume.", "Give the complete series (more than 15 slices)."
    ),
    "volume-detached": ErrorCode(
        "The header stands apart from its data, and the files that a header names are not opened.",
        "Write header and data into one file (.nrrd, .mha).",
    ),
    "volume-no-orientation": ErrorCode(
        "The file's header states no orientation, or contradicts itself.",
        "Write the file again with spacing, directions and origin in patient space.",
    ),
    "volume-not-3d": ErrorCode("The file does not hold one 3D volume.", "Give one 3D CT volume."),
    "ct-not-hu": ErrorCode(
        "The values are not Hounsfield units.", "Export with rescale slope and intercept, not as a picture."
    ),
    "ct-interleaved": ErrorCode(
        "Every second slice shows something else than its neighbors.", "Export one acquisition per series."
    ),
    "ct-no-chest": ErrorCode("No pair of lungs was found.", "Give a CT of the chest that shows both lungs."),
    "ct-incomplete-chest": ErrorCode(
        "The lungs are not completely inside the scan.", "Give a CT that covers the whole chest."
    ),
    "ct-lung-volume": ErrorCode(
        "The lungs' volume is not that of a human.", "Check the voxel size that the header states."
    ),
    # -- de-identification ----------------------------------------------------------------------------
    "key-missing": ErrorCode("There is no key file.", "Give --new-key once, and keep the file at the site."),
    "key-exposed": ErrorCode("Others may read the key file.", "Let only its owner read it (chmod 600)."),
    "key-invalid": ErrorCode("The key file does not hold a key.", "Restore the key file from its backup."),
    "output-in-input": ErrorCode(
        "The output lies inside the input.", "Choose a folder outside of the input."
    ),
    "deid-burned-in": ErrorCode(
        "Text is burned into the picture.", "Leave the image out, or export it without annotation."
    ),
    "deid-no-slice": ErrorCode(
        "The picture is no CT slice; it may show text.", "Leave it out: only slices can be passed on."
    ),
    "deid-encoding": ErrorCode(
        "Comments inside the compressed picture cannot be cleared.", "Export uncompressed images."
    ),
    "deid-pixel-bits": ErrorCode(
        "Bits beside the pixel values are in use and may hold an overlay.",
        "Export without burned-in overlays.",
    ),
    "deid-duplicate": ErrorCode(
        "Another file has the same identifier or the same content.", "None: the first one was written."
    ),
    "deid-convert": ErrorCode(
        "NRRD and MetaImage headers are not cleaned.", "Convert with `ucadi convert` first."
    ),
    "deid-nothing": ErrorCode(
        "No file could be de-identified.", "Give a folder with CT series, or with NIfTI files."
    ),
    # -- cohorts and files ----------------------------------------------------------------------------
    "cohort-invalid": ErrorCode("The cohort's study table is not valid.", "Mend the table as said."),
    "cohort-empty": ErrorCode(
        "The cohort has no study for this task.", "Add studies with the labels that the task needs."
    ),
    "cohort-label": ErrorCode(
        "A study has no label, or one that is not known.",
        "Name HEALTHY, COVID_19, OTHER_VIRAL or BACTERIAL in the table of labels.",
    ),
    "cohort-mask": ErrorCode(
        "A lesion mask does not fit its image or its label.",
        "Give one mask of zeros and ones on the image's grid.",
    ),
    "cohort-duplicate": ErrorCode(
        "The same scan is in the cohort under two names.", "Keep one of the two studies."
    ),
    "cohort-leak": ErrorCode(
        "A patient is in two splits, or a study names two patients.",
        "Give all studies of a patient the same key and split.",
    ),
    "cohort-changed": ErrorCode(
        "A file or a setting is not the one with which the cohort was made.",
        "Import the study again with the same key file and shares.",
    ),
    "cohort-balance": ErrorCode(
        "A split or a class has few studies or none.", "Add studies of the class, or use other shares."
    ),
    "archive-many-studies": ErrorCode(
        "The archive holds several studies.", "Unpack it, or put one study into each archive."
    ),
    "worker-lost": ErrorCode(
        "A worker process was stopped from outside, most likely for want of memory.",
        "Give fewer --jobs and start again: what is done is kept.",
    ),
    "checkpoint-invalid": ErrorCode(
        "A model folder is incomplete or was changed.", "Restore the folder, or release the model again."
    ),
    "model-unknown": ErrorCode("The network's name is not registered.", "Use a registered name."),
    "output-exists": ErrorCode("The output exists already.", "Choose another folder, or give --force."),
    "file-error": ErrorCode(
        "A file or folder cannot be read or written.",
        "Check that it exists and that you may read or write it.",
    ),
    "disk-full": ErrorCode("The disk is full or not usable.", "Free space, or choose another folder."),
    # -- image servers --------------------------------------------------------------------------------
    "pacs-address": ErrorCode(
        "The address of the image server is not valid.",
        "Write https://host/path for DICOMweb, or dicom://TITLE@host:port.",
    ),
    "pacs-insecure": ErrorCode(
        "The connection to the image server is not encrypted.",
        "Use https:// or dicoms://, or accept an open network with --insecure.",
    ),
    "pacs-credentials": ErrorCode(
        "The credentials for the image server are incomplete or not usable.",
        "Give --user with --password-file, or --token-file.",
    ),
    "pacs-not-authorized": ErrorCode(
        "The image server refused access.",
        "Check user and password or token, or have the application entity title entered at the server.",
    ),
    "pacs-certificate": ErrorCode(
        "The image server did not prove who it is.", "Give the authority of its certificate with --ca."
    ),
    "pacs-unreachable": ErrorCode(
        "The image server cannot be reached, or broke off.", "Check host, port and firewall, and try again."
    ),
    "pacs-answer": ErrorCode(
        "The image server's answer cannot be used.", "Check the address, and the server's log."
    ),
    "pacs-no-match": ErrorCode(
        "The image server has no such images.", "Look for them with `ucadi dicom query`."
    ),
    "pacs-incomplete": ErrorCode("The image server did not send all images.", "See the server's log."),
    "pacs-foreign": ErrorCode("An image came that was not asked for.", "Check the server's set-up."),
    "pacs-duplicate": ErrorCode(
        "Another image with the same identifiers came before.", "None: the first one is kept."
    ),
    "pacs-too-large": ErrorCode(
        "More came over the network than the limits allow.", "Pull one series at a time."
    ),
    # -- configuration --------------------------------------------------------------------------------
    "config-invalid": ErrorCode(
        "A setting is missing, unknown or out of bounds.", "Mend the setting as said."
    ),
    # -- federation -----------------------------------------------------------------------------------
    "protocol-version": ErrorCode(
        "The other side speaks another version of the protocol.",
        "Install the same ucadi release on both sides.",
    ),
    "message-invalid": ErrorCode("A message is damaged or not of the expected kind.", "Update both sides."),
    "round-stale": ErrorCode("The message belongs to another round or run.", "None: the site catches up."),
    "model-mismatch": ErrorCode(
        "The model received is not the one that the plan names.", "Stop and ask the coordinator."
    ),
    "update-unknown-tensor": ErrorCode(
        "The update names parameters that the model does not have.", "Install the same release on both sides."
    ),
    "update-missing-tensor": ErrorCode(
        "The update lacks parameters of the model.", "Install the same release on both sides."
    ),
    "update-wrong-shape": ErrorCode(
        "A parameter of the update has another shape or type.", "Install the same release on both sides."
    ),
    "update-not-finite": ErrorCode(
        "The update holds NaN, infinite or huge values.", "Lower the site's learning rate; check its data."
    ),
    "update-bad-weight": ErrorCode(
        "The update's iterations or weight are not positive numbers.", "Check the site's settings."
    ),
    "site-unknown": ErrorCode("The site does not take part in this run.", "Ask the coordinator to add it."),
    "site-declined": ErrorCode("The site cannot take part in this task.", "See the site's log."),
    "quorum-missed": ErrorCode(
        "Fewer sites answered than the plan needs.", "Bring the missing sites back, or lower min_sites."
    ),
    "site-failed": ErrorCode("The site's training failed.", "See the site's log."),
    "plan-waiting": ErrorCode(
        "The site has not decided about the plan yet.",
        "At the site: read it with `ucadi site plans`, then `ucadi site approve` or `reject`.",
    ),
    "plan-rejected": ErrorCode("The site rejected the plan.", "Ask the site, and submit another plan."),
    "plan-forbidden": ErrorCode(
        "The site's policy forbids the plan.",
        "At the site: `ucadi site plans` names the rule; the policy is in policy.toml.",
    ),
    "plan-changed": ErrorCode(
        "The site approved the run in another form.",
        "Submit changes as a new run, or have the site approve this form.",
    ),
    "plan-spent": ErrorCode(
        "The site has sent more updates than the plan can need.", "Submit a new run, with another name."
    ),
    "plan-unknown": ErrorCode("There is no such plan.", "Take an id that `ucadi site plans` lists."),
    "site-paused": ErrorCode("The site has paused.", "At the site: `ucadi site resume`."),
    "site-closed": ErrorCode(
        "The site takes part at other hours only.", "None: the run waits for the site's hours."
    ),
    "site-home-missing": ErrorCode(
        "The folder is no site's home.", "Make one with `ucadi site init`, or name it with --home."
    ),
    "run-unknown": ErrorCode("There is no run of that name.", "Take a name that `ucadi run list` shows."),
    "run-exists": ErrorCode("There is another run of that name.", "Give the plan a new name."),
    "run-state": ErrorCode(
        "The run's state does not allow this.", "See the state with `ucadi run show`, and choose another way."
    ),
    "round-unknown": ErrorCode(
        "The run has no complete round of that number.", "Take a round that `ucadi run show` lists."
    ),
    "extra-missing": ErrorCode(
        "An optional part of ucadi is not installed.", "Install it: pip install 'ucadi[tracking]'."
    ),
    "tracking-failed": ErrorCode(
        "The tracking server cannot be reached, or refused the data.", "Check its address and its log."
    ),
    "model-not-kept": ErrorCode(
        "The run keeps no such model.", "Name best, last or a complete round, see `ucadi run show`."
    ),
    "evaluation-missing": ErrorCode(
        "The run's models were not measured at its sites.", "Ask for it with `ucadi model evaluate`."
    ),
    "evaluation-not-agreed": ErrorCode(
        "The plan that the sites approved does not let them report how well a model serves them.",
        "Submit a plan with the validation metric.",
    ),
    # -- releases -------------------------------------------------------------------------------------
    "release-name": ErrorCode(
        "The release's name cannot be used.", "Use lower case letters, digits, dots and hyphens."
    ),
    "release-unknown": ErrorCode("There is no such release.", "See `ucadi model list`."),
    "release-exists": ErrorCode(
        "A release is frozen: its name cannot be given again.", "Choose another name."
    ),
    "release-altered": ErrorCode(
        "A release is incomplete or was changed.", "Pull it again, or restore it from an export."
    ),
    "release-signer": ErrorCode(
        "The release was not signed by this federation's coordinator.",
        "Do not use it; ask the coordinator for its key's fingerprint.",
    ),
    # -- joining --------------------------------------------------------------------------------------
    "home-missing": ErrorCode(
        "The folder is not one of a coordinator or a site.",
        "Make it with `ucadi coordinator init` or `ucadi site init`, or name it with --home.",
    ),
    "signature-invalid": ErrorCode(
        "A signature is missing or does not fit what was signed.", "Enrol the site again if it happens again."
    ),
    "invitation-invalid": ErrorCode(
        "The invitation is damaged or was altered.", "Ask the coordinator for a new one."
    ),
    "invitation-expired": ErrorCode("The invitation is too old.", "Ask the coordinator for a new one."),
    "invitation-used": ErrorCode(
        "The invitation was used before or was withdrawn.", "Ask the coordinator for a new one."
    ),
    "invitation-foreign": ErrorCode(
        "The invitation is for another site.", "Ask the coordinator for one with this site's name."
    ),
    "site-key-changed": ErrorCode(
        "The name was certified for another key before.",
        "Restore the site's keys from their backup, or ask for an invitation under another name.",
    ),
    "application-invalid": ErrorCode(
        "The site's application is damaged or not signed with its own keys.",
        "Install the same ucadi release on both sides and join again.",
    ),
    "member-unknown": ErrorCode("The federation has no such site.", "See `ucadi coordinator sites`."),
    "member-state": ErrorCode(
        "The site's state does not allow this.", "See `ucadi coordinator sites`, or `ucadi site status`."
    ),
    "join-waiting": ErrorCode(
        "The coordinator has not approved the site yet.",
        "Read the fingerprint to the coordinator by phone, then run `ucadi site join` again.",
    ),
    "site-revoked": ErrorCode(
        "The coordinator ended the site's membership.",
        "Ask the coordinator; a new invitation admits it again.",
    ),
    "site-left": ErrorCode("The site has left the federation.", "Join again with a new invitation."),
    "site-not-joined": ErrorCode(
        "The site has not joined a federation.", "Run `ucadi site join` with the coordinator's invitation."
    ),
    "coordinator-unproven": ErrorCode(
        "The coordinator did not prove that it is the one of the invitation.",
        "Check its host name, and whether a proxy opens its connections; else ask for a new invitation.",
    ),
    "clock-skewed": ErrorCode(
        "The clocks of site and coordinator differ by more than five minutes.",
        "Set the clock, best by a time service (NTP).",
    ),
    "request-replayed": ErrorCode("The same request came before.", "None: the first one counts."),
    "request-too-large": ErrorCode(
        "The request is larger than the coordinator takes.", "Install the same ucadi release on both sides."
    ),
    "request-unknown": ErrorCode(
        "The coordinator does not know this request.", "Install the same ucadi release on both sides."
    ),
    # -- engine ---------------------------------------------------------------------------------------
    "engine-failed": ErrorCode("The federation engine stopped.", "See the coordinator's log."),
    "site-kit-altered": ErrorCode(
        "The site's safety settings are missing or were changed.", "Restore the site's kit."
    ),
    "message-too-large": ErrorCode(
        "A message is larger than what is allowed or fits.",
        "Send smaller updates, or give the site more memory.",
    ),
    "job-refused": ErrorCode(
        "The engine was told to do what is not allowed.", "Ask the coordinator's people what they sent."
    ),
    "home-in-use": ErrorCode(
        "Another process runs this home.",
        "Nothing is to be done: it goes on. Stop it first to start it anew.",
    ),
    "port-taken": ErrorCode("The network port is in use.", "Choose another port, or stop the other program."),
    "not-authorized": ErrorCode("The other side refused the identity.", "Enrol the site again."),
    "unreachable": ErrorCode("The coordinator cannot be reached.", "Check name, port, firewall and proxy."),
    "interrupted": ErrorCode("The run was stopped by its user.", "Start it again."),
    # -- store ----------------------------------------------------------------------------------------
    "store-unreachable": ErrorCode(
        "The database cannot be reached or does not answer.",
        "Check that its server or its disk is there; the program tries again by itself.",
    ),
    "store-version": ErrorCode(
        "The database was made by another release.", "Install the release that made it, or a newer one."
    ),
    "store-damaged": ErrorCode(
        "The database is damaged or was not made by ucadi.", "Restore it from its backup."
    ),
    "store-conflict": ErrorCode(
        "What is to be stored contradicts what is stored.", "None: nothing was changed."
    ),
    "audit-broken": ErrorCode(
        "The audit log was changed after it was written.",
        "Keep the database as it is, and ask who had access.",
    ),
}
"""Every code with what may be said outside. Codes are never reused for another meaning."""


class UcadiError(Exception):
    """A wrong world (file, site, message), as against a wrong call, which is a ValueError.

    Args:
        code: A key of `CODES`.
        detail: What happened, with the value seen, and where. Stays on this machine.
        cure: How to mend it, when the register's sentence is too general.
    """

    exit_status: ClassVar[ExitStatus] = ExitStatus.FAILED

    def __init__(self, code: str, detail: str, *, cure: str | None = None) -> None:
        self.code = code
        self.detail = detail
        self.cure = CODES[code].cure if cure is None else cure
        super().__init__(f"{detail} {self.cure}")

    @property
    def public_message(self) -> str:
        """One sentence that may leave the site."""
        return CODES[self.code].public_message


class ConfigError(UcadiError):
    """A setting is wrong."""

    exit_status = ExitStatus.USAGE


class DataError(UcadiError):
    """Input data are refused."""

    exit_status = ExitStatus.REFUSED_INPUT


class DicomError(DataError):
    """A DICOM file or series is refused."""


class NiftiError(DataError):
    """A NIfTI file is refused."""


class GeometryError(DataError):
    """A volume's geometry is refused."""


class CohortError(DataError):
    """A cohort's table or files are refused."""


class ModelError(UcadiError):
    """A network or its parameters are refused."""


class CheckpointError(ModelError):
    """A model folder is refused."""


class FederationError(UcadiError):
    """A federated run cannot go on as asked."""


class ProtocolVersionError(FederationError):
    """The two sides speak different versions."""


class UpdateRejectedError(FederationError):
    """A site's message is refused; the run goes on without it."""


class QuorumError(FederationError):
    """Too few sites take part."""


class EngineError(UcadiError):
    """The engine that carries messages failed."""


class NotAuthorizedError(EngineError):
    """An identity was refused."""

    exit_status = ExitStatus.NOT_AUTHORIZED


class UnreachableError(EngineError):
    """The other side cannot be reached."""

    exit_status = ExitStatus.UNREACHABLE


class StoreError(UcadiError):
    """The database cannot be used, or what is asked contradicts what it holds."""


class StoreUnreachableError(StoreError):
    """The database does not answer now."""

    exit_status = ExitStatus.UNREACHABLE
