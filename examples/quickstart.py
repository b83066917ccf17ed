"""From BCEWithLogitsLoss to DistributionBalancedLoss: one line of a training loop changes.

    python examples/quickstart.py

The data are generated: 200 labels, of which the first has thousands of samples and the last a handful. Printed is F1 in
percent on test samples at the threshold 0.5, before training and after it with each of the two losses.
"""

import torch
from torch import Tensor, nn

from fused_balanced_loss import DistributionBalancedLoss, LabelStatistics
from fused_balanced_loss.metrics import ThresholdedF1

NUM_LABELS, NUM_FEATURES, BATCH, EPOCHS = 200, 64, 64, 8


def generate(num_samples: int, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Features [N, D], the sum of the directions of a sample's labels with noise, and multi-hot targets [N, C]."""
    frequency = 1 / torch.arange(1, NUM_LABELS + 1) ** 1.2
    targets = torch.zeros(num_samples, NUM_LABELS)
    targets.scatter_(1, torch.multinomial(frequency.expand(num_samples, -1), 3), 1.0)
    return targets @ directions + 2.0 * torch.randn(num_samples, NUM_FEATURES), targets


def train(model: nn.Module, loss_of: nn.Module, features: Tensor, targets: Tensor) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(features)).split(BATCH):
            loss = loss_of(model(features[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def main() -> None:
    torch.manual_seed(0)
    directions = torch.randn(NUM_LABELS, NUM_FEATURES)
    features, targets = generate(10_000, directions)
    test_features, test_targets = generate(4_000, directions)

    # What the balanced losses need besides logits and targets: how often each label occurs in training.
    statistics = LabelStatistics.from_targets(targets)
    groups = statistics.frequency_groups(head=500, tail=50)._asdict()
    losses = {
        "before training": None,
        "BCEWithLogitsLoss": nn.BCEWithLogitsLoss(),
        "DistributionBalancedLoss": DistributionBalancedLoss(statistics),
    }
    print(f"{'micro-F1/macro-F1, %':<26}{'all labels':>14}{'tail labels':>14}")
    for name, loss_of in losses.items():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(NUM_FEATURES, 128), nn.ReLU(), nn.Linear(128, NUM_LABELS))
        if loss_of is not None:
            train(model, loss_of, features, targets)
        f1 = ThresholdedF1(NUM_LABELS, [0.5], groups)
        with torch.no_grad():
            f1.update(model(test_features), test_targets)
        scores = f1.scores(0.5)
        shown = (
            f"{100 * scores[group]['micro']:.1f}/{100 * scores[group]['macro']:.1f}" for group in ("total", "tail")
        )
        print(f"{name:<26}" + "".join(f"{text:>14}" for text in shown))


if __name__ == "__main__":
    main()
