"""The small convolutional network of Saini & Papalexakis, for grey pictures of 28×28 pixels."""

from __future__ import annotations

from torch import Tensor, nn

INPUT_SHAPE = (1, 28, 28)
CLASSES = 10


class ConvNet(nn.Module):
    """Two blocks of convolution, pooling and ReLU, then one fully connected layer.

    A picture of 784 pixels becomes 10×12×12 = 1,440 numbers after the first block, 20×4×4 = 320 after
    the second, then one per class. Source: Saini & Papalexakis, "A Peek Into the Hidden Layers of a
    Convolutional Neural Network Through a Factorization Lens".

    Parameters
    ----------
    classes : int
        Number of outputs.
    """

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 10, kernel_size=5)
        self.pool1 = nn.MaxPool2d(2)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(10, 20, kernel_size=5)
        self.pool2 = nn.MaxPool2d(2)
        self.relu2 = nn.ReLU()
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(320, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return one number per class, shape (batch, classes), for images (batch, 1, 28, 28)."""
        x = self.relu1(self.pool1(self.conv1(images)))
        x = self.relu2(self.pool2(self.conv2(x)))
        output: Tensor = self.fc(self.flatten(x))
        return output
