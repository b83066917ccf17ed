"""timm's factory of losses, for multi-label targets: the same arguments and numbers, fused.

``timm.loss.create_classification_loss(..., multi_label=True)`` becomes
``fused_balanced_loss.integrations.timm.create_classification_loss(..., multi_label=True)``; timm need not be there. The
numbers are those of timm 1.0.31, with three differences. timm's asymmetric loss takes ``1 - sigmoid`` in float32 and
clamps probabilities at 1e-8: it loses digits from logits of about 10 on, and no longer grows beyond 18; ours does
neither. float64 logits are computed in float64, where timm takes float32. The loss of half-precision logits is float32,
where timm's ``"bce"`` returns half precision.
"""

from .factory import FUSED_LOSSES, MultiLabelLoss, create_classification_loss

__all__ = ["FUSED_LOSSES", "MultiLabelLoss", "create_classification_loss"]
