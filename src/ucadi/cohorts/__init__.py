# SPDX-License-Identifier: Apache-2.0
"""A site's studies as a table: labels, splits, checks."""
