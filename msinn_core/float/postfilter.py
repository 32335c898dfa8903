"""Post-filters: a small U-Net that corrects the decoded picture (MSINN section III-D), as in the paper and as in `msinn-lite`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SCALE = 0.3


class SqueezeExcite(nn.Module):
    """Channel gate from the mean over the whole picture."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(channels, channels // 16, bias=False),
            nn.ReLU(),
            nn.Linear(channels // 16, channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.fc(x.mean(dim=(2, 3)))
        return x * gate[:, :, None, None]


class Block(nn.Module):
    """`conv3x3(LeakyReLU(conv3x3(x)))`, optionally gated, plus a 1x1 skip."""

    def __init__(self, in_channels: int, out_channels: int, *, gated: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
            nn.LeakyReLU(0.01),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        ]
        self.conv = nn.Sequential(*layers, *([SqueezeExcite(out_channels)] if gated else []))
        self.up_dim = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x) + self.up_dim(x)
        return out


class Refine(nn.Module):
    """`x + conv3x3(ReLU(conv3x3(ReLU(x))))`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv2(F.relu(self.conv1(F.relu(x))))
        return out


def _up(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, 4 * out_channels, 1), nn.PixelShuffle(2))


class _PaperUNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = Block(16, 32, gated=True)
        self.conv2 = Block(32, 64, gated=True)
        self.conv3 = Block(64, 128, gated=True)
        self.context_refine = nn.Sequential(*(Refine(128) for _ in range(4)))
        self.up3 = _up(128, 64)
        self.up_conv3 = Block(128, 64, gated=True)
        self.up2 = _up(64, 32)
        self.up_conv2 = Block(64, 16, gated=True)

    def forward(self, x: Tensor) -> Tensor:
        down1 = self.conv1(x)
        down2 = self.conv2(F.max_pool2d(down1, 2))
        bottom = self.context_refine(self.conv3(F.max_pool2d(down2, 2)))
        out = self.up_conv3(torch.cat((down2, self.up3(bottom)), dim=1))
        result: Tensor = self.up_conv2(torch.cat((down1, self.up2(out)), dim=1))
        return result


class PaperPostFilter(nn.Module):
    """The paper's post-filter. Its gates see the whole padded picture: it cannot be computed in bands or tiles."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.unet = _PaperUNet()
        self.conv2 = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` -> `[N, 3, H, W]`; H and W multiples of 4."""
        correction: Tensor = self.conv2(self.unet(self.conv1(x))).float()
        return x + SCALE * correction


class LitePostFilter(nn.Module):
    """Post-filter of `msinn-lite`: works at half resolution and sees only a bounded neighbourhood."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(12, 16, 3, padding=1)
        self.c1 = Block(16, 16, gated=False)
        self.c2 = Block(16, 32, gated=False)
        self.c3 = Block(32, 48, gated=False)
        self.c4 = Block(48, 48, gated=False)
        self.up3 = nn.Conv2d(48, 128, 1)
        self.u3 = Block(64, 32, gated=False)
        self.up2 = nn.Conv2d(32, 64, 1)
        self.u2 = Block(32, 16, gated=False)
        self.conv2 = nn.Conv2d(16, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` -> `[N, 3, H, W]`; H and W multiples of 8."""
        a = self.c1(self.conv1(F.pixel_unshuffle(x, 2)))
        b = self.c2(F.max_pool2d(a, 2))
        out = self.c4(self.c3(F.max_pool2d(b, 2)))
        out = self.u3(torch.cat((b, F.pixel_shuffle(self.up3(out), 2)), dim=1))
        out = self.u2(torch.cat((a, F.pixel_shuffle(self.up2(out), 2)), dim=1))
        return x + SCALE * F.pixel_shuffle(self.conv2(out), 2).float()


def post_filter(kind: str) -> nn.Module | None:
    """`paper`, `lite` or `none`."""
    return {"paper": PaperPostFilter, "lite": LitePostFilter}[kind]() if kind != "none" else None
