"""What tests of the evaluator share: images whose texture tells their class, a network for them, and settings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from understudy.config.training import Augmentation, Candidates, Final, Training

CANDIDATES = Candidates(training=Training(epochs=2, batch_size=32), examples=90, weights="inherited", stop_below=0.0)
FINAL = Final(training=Training(epochs=3, batch_size=32, loss="mse+ce"), weights="inherited")
AUGMENTATION = Augmentation(crop=1, flip=True)


class Teacher(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(16)
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Linear(16, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(images)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.classifier(self.dropout(x.mean((2, 3))))
