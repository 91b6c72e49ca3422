# SPDX-License-Identifier: Apache-2.0
"""What a reading found, as DICOM objects on the source's own slices."""
