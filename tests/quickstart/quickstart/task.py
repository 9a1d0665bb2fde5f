"""A model, its data and its training loop, as an app of Flower's has them."""

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(10, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.relu(self.fc1(x)))


def load_data(partition_id: int, num_partitions: int) -> DataLoader:
    """Blobs of four classes, of which a partition has two."""
    generator = torch.Generator().manual_seed(partition_id)
    labels = (torch.randint(0, 2, (48,), generator=generator) + partition_id) % 4
    inputs = torch.randn(48, 10, generator=generator) + 2 * nn.functional.one_hot(labels, 10)
    return DataLoader(TensorDataset(inputs, labels), batch_size=16)


def train(net: nn.Module, trainloader: DataLoader, epochs: int, optimizer: torch.optim.Optimizer) -> float:
    net.train()
    running_loss = 0.0
    for _ in range(epochs):
        for inputs, labels in trainloader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(inputs), labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
    return running_loss / (epochs * len(trainloader))


def test(net: nn.Module, testloader: DataLoader) -> tuple[float, float]:
    net.eval()
    correct, loss = 0, 0.0
    with torch.no_grad():
        for inputs, labels in testloader:
            outputs = net(inputs)
            loss += nn.functional.cross_entropy(outputs, labels).item()
            correct += int((outputs.argmax(dim=1) == labels).sum())
    return loss / len(testloader), correct / len(testloader.dataset)
