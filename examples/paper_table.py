"""The published figures: Huang et al., EMNLP 2021, Table 2, Reuters-21578 columns."""

from __future__ import annotations

from records import GROUPS, Scores

# Micro- and macro-F1 in percent: total, head, medium, tail.
_TABLE_2 = {
    "SVM": ((87.60, 51.63), (89.87, 78.47), (66.92, 61.00), (22.54, 13.83)),
    "BCE": ((89.14, 47.32), (91.75, 82.81), (66.28, 57.26), (0.00, 0.00)),
    "FL": ((89.97, 56.83), (91.83, 82.64), (76.16, 70.63), (27.40, 15.37)),
    "CB": ((89.23, 52.96), (91.56, 80.44), (71.64, 66.61), (23.08, 9.93)),
    "R-FL": ((89.47, 54.35), (91.59, 80.39), (72.86, 66.69), (25.00, 14.22)),
    "NTR-FL": ((90.70, 60.70), (92.37, 82.65), (79.35, 75.34), (39.51, 22.33)),
    "DB-0FL": ((89.45, 57.98), (91.21, 82.05), (77.33, 71.11), (31.17, 19.05)),
    "CB-NTR": ((90.74, 63.31), (92.46, 83.28), (78.42, 72.98), (46.32, 32.31)),
    "DB": ((90.62, 64.47), (92.14, 83.48), (80.25, 77.01), (48.89, 31.39)),
}

PAPER_SCORES: dict[str, Scores] = {
    method: {
        group: {"micro": micro / 100, "macro": macro / 100} for group, (micro, macro) in zip(GROUPS, row, strict=True)
    }
    for method, row in _TABLE_2.items()
}
