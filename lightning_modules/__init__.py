"""WHO is trained: timm backbones with a loss and an optimiser."""
