"""WHO is trained: timm backbones with a loss and an optimiser.

Importing this package registers ``resnet18_cifar``, ``resnet20_cifar`` and ``resnet32_cifar`` with
timm.
"""

from firstlight.lightning_modules.image_classifier import ImageClassifier
from firstlight.lightning_modules.schedules import WarmupCosineLR, WarmupMultiStepLR
from firstlight.lightning_modules.timm_optimizer import TimmOptimizer

__all__ = ["ImageClassifier", "TimmOptimizer", "WarmupCosineLR", "WarmupMultiStepLR"]
