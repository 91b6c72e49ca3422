# SPDX-License-Identifier: Apache-2.0
"""Copies of images without the patient, by a list of what is kept and a key of the site."""
