"""The challenge's submission package: score files, meta data, up to four systems, one zip.

python -m nearfar.submission check DIR
"""

from .meta import meta_faults
from .package import check_package, package_faults, write_package
from .score_files import (
    check_scores,
    list_faults,
    read_anomaly_scores,
    read_decisions,
    write_anomaly_scores,
    write_decisions,
)

__all__ = [
    "check_package",
    "check_scores",
    "list_faults",
    "meta_faults",
    "package_faults",
    "read_anomaly_scores",
    "read_decisions",
    "write_anomaly_scores",
    "write_decisions",
    "write_package",
]
