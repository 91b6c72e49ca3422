# SPDX-License-Identifier: Apache-2.0
"""Studies to and from image servers: DICOMweb and DIMSE behind one protocol."""
